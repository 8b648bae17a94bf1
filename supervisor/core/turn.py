"""One step in the making: the run as it changes, and the actions that come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from supervisor.core.actions import Action
from supervisor.core.types import Deadline, Phase, Run


class Turn:
    """The run as it changes within one step, and the actions that come of it."""

    def __init__(self, run: Run, at: float) -> None:
        self.run = run
        self.at = at
        self.actions: list[Action] = []

    def set(self, **changes: Any) -> None:
        self.run = replace(self.run, **changes)

    def do(self, action: Action) -> None:
        self.actions.append(action)
        self.set(pending={**self.run.pending, action.key: action})

    def drop(self, unwanted: Callable[[Action], bool]) -> None:
        """Forget actions whose result no longer matters."""
        self.set(pending={k: a for k, a in self.run.pending.items() if not unwanted(a)})

    def phase(self, phase: Phase, reason: str, deadline: tuple[float, str] | None = None) -> None:
        """Enter a phase; the deadline is seconds from now and what happens then."""
        self.set(
            phase=phase,
            since=self.at,
            reason=reason,
            deadline=None
            if deadline is None
            else Deadline(at=self.at + deadline[0], what=deadline[1]),
        )

    def node(self, name: str, **changes: Any) -> None:
        node = replace(self.run.pool[name], **changes)
        self.set(pool={**self.run.pool, name: node})

    def attempt(self, **changes: Any) -> None:
        assert self.run.attempt is not None
        self.set(attempt=replace(self.run.attempt, **changes))

    def incident(self, **changes: Any) -> None:
        """Change the newest incident."""
        *before, last = self.run.incidents
        self.set(incidents=(*before, replace(last, **changes)))
