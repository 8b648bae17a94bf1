"""What people do to a simulated run, and that they take up again what has ended by their wish."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from supervisor.core import events as ev
from supervisor.core.errors import UserError
from supervisor.core.types import Phase

if TYPE_CHECKING:
    from supervisor.simulate.world import SimulatedWorld

RESUME_S = 20.0  # after the run has ended


class Person:
    """Ann, who has the run."""

    def __init__(self, world: SimulatedWorld) -> None:
        self._world = world
        self._resumes = False
        self._excluded: dict[str, str] = {}

    def stop(self, *, now: bool) -> None:
        engine = self._world.host.engine
        if engine is not None and not engine.run.ended:
            self._world.held.person_stops = True
            with contextlib.suppress(UserError):  # this engine is just ending
                engine.stop("ann", now=now)

    def quarantine(self) -> None:
        """The newest checkpoint but one, with all that came of it."""
        engine = self._world.host.engine
        if engine is None or engine.run.ended or len(engine.run.lineage) < 3:
            return
        at = engine.run.lineage[-2].step
        try:
            engine.quarantine("ann", at, "a spike in the loss", and_later=True)
        except UserError as error:
            self._world.say(f"quarantine refused: {error}")

    def exclude(self, node: str) -> None:
        """One node, or none any more: read from the fleet record by each engine again."""
        self._excluded = {node: "bad link"} if node else {}
        self.read_exclusions()

    def read_exclusions(self) -> None:
        engine = self._world.host.engine
        if engine is not None:
            with contextlib.suppress(UserError):  # this engine is just ending
                engine.operator_exclusions_read(dict(self._excluded))

    def looks(self) -> None:
        """A stopped run is resumed once its nodes are given back."""
        run = self._world.run
        if run.phase is not Phase.STOPPED or self._resumes or self._world.host.engine is not None:
            return
        if not run.live_jobs:
            self._resumes = True
            self._world.later(RESUME_S, self._resume)

    def _resume(self) -> None:
        self._resumes = False
        run = self._world.run
        number = run.attempt.number if run.attempt is not None else 0
        self._world.held.person_stops = False
        self._world.say("ann resumes the run")
        self._world.host.start(
            ev.ResumeRequested(at=0.0, who="ann", spec=replace(run.spec, first_attempt=number + 1))
        )
