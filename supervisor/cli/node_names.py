"""The NODES of a command line: host lists, as many as one likes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def nodes_argument(*, required: bool) -> Callable[[Any], Any]:
    """NODES as the parameter `nodes`: names, each once, in their order."""
    return click.argument(
        "nodes",
        metavar="NODES…" if required else "[NODES]…",
        nargs=-1,
        required=required,
        callback=lambda ctx, argument, words: named(words),
    )


def named(words: Sequence[str]) -> tuple[str, ...]:
    """The names of `n1 n[4-7],n9`. Raises UserError in one line."""
    from supervisor.core.errors import UserError
    from supervisor.core.nodeset import expand

    names: dict[str, None] = {}
    for word in words:
        if word.count("[") != word.count("]"):
            raise UserError(
                f"host list {word!r}: a bracket is not closed; write names as n1 n[4-7], in quotes"
            )
        try:
            names.update(dict.fromkeys(expand(word)))
        except ValueError as error:
            raise UserError(f"{error}; write names as n1 n[4-7]") from error
    if words and not names:
        raise UserError("no node is named; write names as n1 n[4-7]")
    return tuple(names)
