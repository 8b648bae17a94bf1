"""A key's About as msgspec's constraints: what checks job.yaml, site.yaml and checks' settings."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal

from supervisor.core.setting import About

_LARGEST = sys.float_info.max


def convert(
    value: Any, hint: Any, about: About, dec_hook: Callable[[type, Any], Any] | None = None
) -> Any:
    """The value as the type says, numbers from text too. Raises ValueError where it does not fit.

    msgspec is imported here: whoever only shows help needs none.
    """
    import msgspec

    return msgspec.convert(value, bounded(hint, about), strict=False, dec_hook=dec_hook)


def bounded(hint: Any, about: About) -> Any:
    """The type with the key's bounds; those of a list hold for its items."""
    from msgspec import Meta

    if typing.get_origin(hint) is tuple:
        item, _ = typing.get_args(hint)
        item = bounded(item, dataclasses.replace(about, nonempty=False))
        return Annotated[
            types.GenericAlias(tuple, (item, ...)), Meta(min_length=int(about.nonempty))
        ]
    if hint is int:
        return Annotated[int, Meta(ge=_whole(about.ge), le=_whole(about.le))]
    if hint is float:  # bounded in any case: neither nan nor inf
        ge = -_LARGEST if about.ge is None else about.ge
        return Annotated[float, Meta(ge=ge, le=_LARGEST if about.le is None else about.le)]
    if about.choices:
        return Literal[about.choices]
    if hint is str:
        pattern = rf"\A(?:{about.pattern})\Z" if about.pattern else None
        return Annotated[str, Meta(pattern=pattern, min_length=int(about.nonempty))]
    return hint


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)
