"""One step in the making: the run as it changes, and the actions that come of it.

The handlers of events and of deadlines register here, each beside its subject.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from supervisor.core.actions import Action
from supervisor.core.events import Event
from supervisor.core.persistent import changed
from supervisor.core.policy import Policy
from supervisor.core.types import Deadline, DeadlineKind, Phase, Run


class Transition:
    """The run as it changes within one step, and the actions that come of it."""

    def __init__(self, run: Run, at: float) -> None:
        self.run = run
        self.at = at
        self.actions: list[Action] = []
        self.phases = [run.phase]  # those that it entered, after the one that it began in

    def set(self, **changes: Any) -> None:
        self.run = changed(self.run, **changes)

    def emit(self, action: Action) -> None:
        self.actions.append(action)
        self.set(pending=self.run.pending.put(action.key, action))

    def drop(self, unwanted: Callable[[Action], bool], *, among: object = None) -> None:
        """Forget actions whose result no longer matters; `among` names the group they are in."""
        pending = self.run.pending
        for key in pending.group(among) if among is not None else pending:
            if unwanted(pending[key]):
                pending = pending.without(key)
        if pending is not self.run.pending:
            self.set(pending=pending)

    def enter_phase(
        self, phase: Phase, reason: str, deadline: tuple[float, DeadlineKind] | None = None
    ) -> None:
        """Enter a phase; the deadline is seconds from now and what happens then."""
        self.phases.append(phase)
        self.set(
            phase=phase,
            since=self.at,
            reason=reason,
            deadline=None
            if deadline is None
            else Deadline(at=self.at + deadline[0], kind=deadline[1]),
        )

    def update_node(self, name: str, **changes: Any) -> None:
        node = changed(self.run.pool[name], **changes)
        self.set(pool=self.run.pool.put(name, node))

    def update_attempt(self, **changes: Any) -> None:
        assert self.run.attempt is not None
        self.set(attempt=changed(self.run.attempt, **changes))

    def update_incident(self, **changes: Any) -> None:
        """Change the newest incident."""
        *before, last = self.run.incidents
        self.set(incidents=(*before, changed(last, **changes)))


E = TypeVar("E", bound=Event)
Handlers = dict[type[Event], Callable[[Transition, Any], None]]
HANDLERS: Handlers = {}


def handles(
    kind: type[E],
) -> Callable[[Callable[[Transition, E], None]], Callable[[Transition, E], None]]:
    """Make the function the one that says what an event of this kind changes."""

    def register(handler: Callable[[Transition, E], None]) -> Callable[[Transition, E], None]:
        assert kind not in HANDLERS, f"{kind.__name__} has a handler already"
        HANDLERS[kind] = handler
        return handler

    return register


@dataclass(frozen=True, slots=True)
class Expiry:
    """What a deadline of one kind may be, and what happens when it passes."""

    handler: Callable[[Transition, str], None]  # is told how long was waited, in words
    most_s: Callable[[Policy], float]  # how far off it may be when it is set
    of_agents: bool  # agents have to say something until then: it waits while none can be heard


EXPIRIES: dict[DeadlineKind, Expiry] = {}


def stands_still(run: Run, kind: DeadlineKind) -> bool:
    """Whether a deadline of this kind waits for the engine to hear its agents again.

    A person's stop does not.
    """
    return (
        run.isolated_since is not None
        and EXPIRIES[kind].of_agents
        and run.stopping_as is not Phase.STOPPED
    )


def due(run: Run, now: float) -> DeadlineKind | None:
    """The deadline that has passed, where one has."""
    deadline = run.deadline
    if deadline is None or now < deadline.at or stands_still(run, deadline.kind):
        return None
    return deadline.kind


def expires(
    kind: DeadlineKind, most_s: Callable[[Policy], float], *, of_agents: bool
) -> Callable[[Callable[[Transition, str], None]], Callable[[Transition, str], None]]:
    """Make the function the one that says what happens when a deadline of this kind passes."""

    def register(handler: Callable[[Transition, str], None]) -> Callable[[Transition, str], None]:
        assert kind not in EXPIRIES, f"{kind.name} has a handler already"
        EXPIRIES[kind] = Expiry(handler, most_s, of_agents)
        return handler

    return register
