"""Flags of `petseg-train`, made from the one table of options in `config.TrainConfig`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from petseg.config import TrainConfig
from petseg.errors import flag_of


def with_train_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command(flags, ...)` one flag for every option; those not given are None in `flags`.

    Literal options are taken as text, so that an unknown value is answered by `TrainConfig`'s own sentence.
    """
    hints = get_type_hints(TrainConfig)
    specs = dataclasses.fields(TrainConfig)
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
    made = [_parameter(spec, hints[spec.name]) for spec in specs]

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        flags: Mapping[str, Any] = {spec.name: given.pop(spec.name) for spec in specs}
        command(flags, **given)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*made, *own)]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _parameter(spec: dataclasses.Field[Any], kind: Any) -> inspect.Parameter:
    flag = flag_of(spec.name)
    is_choice = get_origin(kind) is Literal
    plain = str if is_choice else kind
    default = spec.metadata["default"]
    shown = ("yes" if default else "no") if kind is bool else str(default)
    if get_origin(kind) is tuple:
        shown = " ".join(f"{part:g}" for part in default)
    # Typer would put a text of one's own into brackets of its own.
    help_text = spec.metadata["help"] + (rf" \[default: {shown}]" if shown else "")
    info = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=help_text,
        metavar="|".join(get_args(kind)) if is_choice else "LOW HIGH" if get_origin(kind) is tuple else None,
        show_default=False,
        rich_help_panel=spec.metadata["panel"],
    )
    return inspect.Parameter(
        spec.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[plain | None, info]
    )
