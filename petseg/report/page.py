"""One HTML file that asks for nothing else, from a template."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

from petseg.errors import PetsegError
from petseg.report import words
from petseg.system import write_atomic


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill a template of this package and write it, whole or not at all.

    Args:
        path: the page.
        template: its file's name.
        values: what the template asks for; text is escaped.

    Raises:
        PetsegError: it cannot be written.
    """
    page = _environment().get_template(template).render(values)
    try:
        # Keys of files whose names are not UTF-8 hold lone surrogates; the page shows them as question marks.
        write_atomic(path, page.encode("utf-8", "replace"))
    except OSError as error:
        raise PetsegError(
            f"{path} could not be written ({error.strerror}): free some space, or make the folder writable."
        ) from error


def script(name: str) -> dict[str, str]:
    """A script of this package and its hash, by which the page's policy lets it run and nothing else.

    Returns:
        `script`, and `script_hash`: SHA-256 in base64 (Content Security Policy Level 3, 8.4).
    """
    text = resources.files("petseg.report").joinpath(name).read_text("utf-8")
    digest = hashlib.sha256(text.encode()).digest()
    return {"script": text, "script_hash": base64.b64encode(digest).decode()}


def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("petseg.report", "."),
        autoescape=True,  # not select_autoescape: that goes by the suffix, and `.j2` is none of its own
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("score", "percent", "rate", "whole", "compact", "duration", "memory"):
        environment.filters[name] = getattr(words, name)
    return environment
