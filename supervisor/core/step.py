"""One step of a run as the invariants see it, and what may be wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from supervisor.core import events as ev
from supervisor.core.actions import Action
from supervisor.core.types import (
    Attempt,
    Run,
)


@dataclass(frozen=True, slots=True)
class Breach:
    """What is wrong with a step, and which of its actions or exclusions make it so."""

    what: str
    refused: tuple[str, ...] = ()  # keys of actions
    nodes: tuple[str, ...] = ()  # nodes whose exclusion is not justified
    raised: bool = False  # the check itself is at fault: nothing is refused for that


@dataclass
class Step:
    """One step: what was, what happened, what came of it."""

    before: Run
    event: ev.Event
    run: Run
    actions: Sequence[Action]
    whole: bool

    @cached_property
    def new(self) -> list[Action]:
        """Actions that this step ordered; an engine that starts orders again what is pending."""
        if not self.actions:
            return []
        pending = self.before.pending
        return [a for a in self.actions if pending.get(a.key) is not a]

    @cached_property
    def new_attempt(self) -> Attempt | None:
        """The attempt that began with this step."""
        old, attempt = self.before.attempt, self.run.attempt
        if attempt is old or attempt is None or (old and old.number == attempt.number):
            return None
        return attempt

    def orders(self, *kinds: type[Action]) -> list[Action]:
        return [a for a in self.new if isinstance(a, kinds)] if self.actions else []

    def changed(self, field: str) -> bool:
        return self.whole or getattr(self.run, field) is not getattr(self.before, field)


Check = Callable[[Step], Iterator[Breach]]


def keys(actions: Sequence[Action]) -> tuple[str, ...]:
    return tuple(a.key for a in actions)
