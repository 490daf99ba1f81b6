"""Write API.md: every public name with its types and an example, from the docstrings."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import petseg

OUT = Path(__file__).parents[1] / "API.md"
HEAD = """# petseg from Python

Every public name, made from the docstrings by `uv run python tools/make_api.py`. Shapes are written with their type,
u8[N, H, W, 3]; whatever petseg refuses is a `PetsegError` with one sentence for a person.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    parts += [f"- [`{name}`](#{name.lower()})" for name in petseg.__all__]
    parts += [_entry(name, getattr(petseg, name)) for name in petseg.__all__]
    return "\n".join(parts) + "\n"


def _entry(name: str, thing: Any) -> str:
    lines = [f"\n## {name}\n"]
    if inspect.isclass(thing):
        lines += [f"`class petseg.{name}`\n", _prose(thing)]
        for attribute, text in _attributes(thing):
            lines.append(f"- `{attribute}`: {text}")
        for method, function in _methods(thing):
            target = function.fget if isinstance(function, property) else function
            of = inspect.signature(target).return_annotation.strip("'")
            signature = f": {of}" if isinstance(function, property) else _signature(target)
            lines += [f"\n### {name}.{method}\n", f"```python\n{method}{signature}\n```\n", _prose(target)]
    else:
        lines += [f"```python\npetseg.{name}{_signature(thing)}\n```\n", _prose(thing)]
    return "\n".join(lines)


def _methods(thing: type) -> list[tuple[str, Any]]:
    found = []
    for method, value in vars(thing).items():
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        shown = callable(function) or isinstance(function, property)
        if not method.startswith("_") and shown and inspect.getdoc(function):
            found.append((method, function))
    return found


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    parameters = [p for name, p in signature.parameters.items() if name not in {"self", "cls"}]
    written = str(signature.replace(parameters=parameters)).replace("'", "")
    if len(written) < 90:
        return written
    inside, _, result = written[1:].rpartition(")")
    return "(\n    " + ",\n    ".join(re.split(r", (?![^\[(]*[\])])", inside)) + f",\n){result}"


def _attributes(thing: type) -> list[tuple[str, str]]:
    """Attributes of a dataclass, with the text that stands below each."""
    source = inspect.getsource(thing)
    found = re.findall(r'^    (\w+: [^\n=]+?)(?: = [^\n]+)?\n    """(.+?)"""', source, re.MULTILINE | re.DOTALL)
    return [(name, " ".join(text.split())) for name, text in found]


def _prose(thing: Any) -> str:
    """A docstring as Markdown: its sections as lists, its example as code."""
    lines, section = [], ""
    for line in (inspect.getdoc(thing) or "").splitlines():
        if line in {"Args:", "Returns:", "Raises:", "Yields:", "Example:"}:
            if section == "Example:":
                lines.append("```")
            section = line
            lines.append("```python" if section == "Example:" else f"**{line[:-1]}**\n")
        elif section == "Example:":
            lines.append(line.removeprefix("    ").replace("  # doctest: +SKIP", ""))
        elif section == "Args:" and re.match(r"    \w+: ", line):
            name, _, text = line.strip().partition(": ")
            lines.append(f"- `{name}`: {text}")
        else:
            lines.append(line.removeprefix("    ") if section else line)
    if section == "Example:":
        lines.append("```")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if OUT.read_text("utf-8") == page() else "API.md is not what the docstrings say: run this again.")
    OUT.write_text(page(), "utf-8")
