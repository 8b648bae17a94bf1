"""Simulated shared storage: checkpoints that ranks save, and what a look at them finds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from supervisor.checkpoints.dcp import CheckpointState
from supervisor.checkpoints.storage import Storage
from supervisor.core.errors import TransientError

if TYPE_CHECKING:
    from supervisor.simulate.world import SimulatedWorld

LOOK_S = 0.02  # what a question to healthy storage takes


@dataclass(slots=True)
class SavedCheckpoint:
    """One that ranks have finished."""

    path: str
    step: int
    attempt: int
    saved_at: float = 0.0
    damaged: bool = False

    @property
    def good(self) -> bool:
        return not self.damaged


class SharedStorage:
    """The file system itself, which outlives every engine."""

    def __init__(self, world: SimulatedWorld) -> None:
        self._world = world
        self.files: dict[str, SavedCheckpoint] = {}
        self.hung = 0  # by how many faults
        self.full = 0
        self.stale = 0  # finished saves look unfinished from the engine's machine
        self.slow_s = 0.0
        self.stale_since = 0.0
        self.gone: dict[str, str] = {}  # paths that were discarded or moved: by which command

    @property
    def answers(self) -> bool:
        return not self.hung

    def save(self, one: SavedCheckpoint) -> None:
        one.saved_at = self._world.loop.time()
        self.files[one.path] = one
        self.gone.pop(one.path, None)

    def listing(self, directory: str) -> dict[str, Any]:
        paths = [one for one in self.files.values() if str(PurePath(one.path).parent) == directory]
        shown = [one for one in paths if not self._hidden(one)]
        hidden = [one for one in paths if self._hidden(one)]
        shown.sort(key=lambda one: -one.step)
        return {
            "exists": bool(paths),
            "paths": [one.path for one in (*shown, *hidden)],
            "refused": [],
        }

    def _hidden(self, one: SavedCheckpoint) -> bool:
        return bool(self.stale) and one.saved_at > self.stale_since

    def verified(self, path: str) -> dict[str, Any]:
        one = self.files.get(path)
        state, reason = CheckpointState.VERIFIED, ""
        if one is None:
            state, reason = CheckpointState.UNUSABLE, "it is not there"
        elif self._hidden(one):
            state, reason = CheckpointState.INCOMPLETE, "no .metadata: it was never finished"
        elif one.damaged:
            state, reason = CheckpointState.UNUSABLE, "a shard is too short"
        step = int(path.rpartition("-")[2])
        return {
            "path": path,
            "step": step,
            "state": state.value,
            "reason": reason,
            "bytes": 1000,
            "mtime": one.saved_at if one is not None else 0.0,
        }

    def fingerprint(self, path: str) -> str:
        one = self.files.get(path)
        if one is None or self._hidden(one):
            return ""
        return f"{one.saved_at:.3f}/{one.damaged}"

    def remove(self, path: str, command: str) -> str:
        if path in self.files:
            self._world.held.removed(self.files[path], command)
            del self.files[path]
            self.gone[path] = command
        return ""


class SimulatedStorage(Storage):
    """What an engine asks through children: each question has an answer, or none in time."""

    def __init__(self, shared: SharedStorage) -> None:
        super().__init__()
        self._shared = shared

    async def ask(self, question: dict[str, Any], *, deadline_s: float) -> Any:
        shared, path = self._shared, question["path"]
        wait = LOOK_S + shared.slow_s
        if shared.hung or wait > deadline_s:
            await asyncio.sleep(deadline_s)
            raise TransientError(f"storage at {path} did not answer within {deadline_s:g} s")
        await asyncio.sleep(wait)
        match question["command"]:
            case "list":
                return shared.listing(path)
            case "fingerprint":
                return shared.fingerprint(path)
            case "verify":
                return shared.verified(path)
            case "discard" | "quarantine" as command:
                return shared.remove(path, command)
            case other:
                raise AssertionError(f"storage is not asked to {other}")
