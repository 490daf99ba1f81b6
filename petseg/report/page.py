"""One HTML file that asks for nothing else, from a template."""

from __future__ import annotations

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
        # Keys of files whose names are no UTF-8 hold lone surrogates; the page shows them as question marks.
        write_atomic(path, page.encode("utf-8", "replace"))
    except OSError as error:
        raise PetsegError(
            f"{path} could not be written ({error.strerror}): free some space, or make the folder writable."
        ) from error


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
