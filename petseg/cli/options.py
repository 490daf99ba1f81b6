"""Flags of commands, made from tables: those of `petseg-train` from `config.TrainConfig`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
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
    made = [_parameter(spec, hints[spec.name]) for spec in specs]

    def call(flags: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        command(flags, **given)

    return _expanded(command, "flags", made, call)


def with_flags(table: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give `command(..., options, ...)` one flag for every field of a dataclass, and an instance of it.

    Args:
        table: whose fields are `Annotated[..., typer.Option(...)]`, each with a default.
    """
    hints = get_type_hints(table, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    made = [
        inspect.Parameter(spec.name, keyword, default=spec.default, annotation=hints[spec.name])
        for spec in dataclasses.fields(table)
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def call(flags: Mapping[str, Any], given: Mapping[str, Any]) -> None:
            command(options=table(**flags), **given)

        return _expanded(command, "options", made, call)

    return decorate


def _expanded(
    command: Callable[..., None],
    name: str,
    made: Sequence[inspect.Parameter],
    call: Callable[[Mapping[str, Any], Mapping[str, Any]], None],
) -> Callable[..., None]:
    """A command with the parameters `made` in place of the one called `name`."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != name]

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        flags = {parameter.name: given.pop(parameter.name) for parameter in made}
        call(flags, given)

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
