"""What a check may look at: files below a root, NVML, the kernel's log, and its own memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from healthchecks.frame.check import NoRight, Unknown

if TYPE_CHECKING:
    from supervisor.proc import Completed

MAX_SAMPLES = 256
# What tools say that may not open a device: errno's words, and their own.
_DENIED = ("ermission denied", "peration not permitted", "must be root", "oot privileges")


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterDelta:
    """How a counter grew since the look before, of the same boot."""

    by: float
    over_s: float

    @property
    def per_s(self) -> float:
        return self.by / self.over_s if self.over_s > 0 else 0.0


class Memory:
    """What a check remembers on this node from one run to the next.

    Forgotten when the node boots, unless it is put as `lasting`; a repair forgets that too
    (healthchecks/frame/repairs.py). Key what belongs to a device by its serial number or GUID.
    """

    def __init__(self, data: dict[str, Any], now: float) -> None:
        self.data: dict[str, dict[str, Any]] = {
            "boot": dict(data.get("boot", {})),
            "lasting": dict(data.get("lasting", {})),
        }
        self._now = now

    def get(self, key: str) -> Any:
        """None where nothing was put."""
        return self.data["boot"].get(key, self.data["lasting"].get(key))

    def put(self, key: str, value: Any, *, lasting: bool = False) -> None:
        """`value` is anything that JSON can hold."""
        self.data["lasting" if lasting else "boot"][key] = value

    def lasted_s(self, key: str, there: bool) -> float:
        """How long a state has been seen in each look, in seconds: 0 at the first."""
        since = self.data["boot"].pop(f"lasts:{key}", self._now)
        if not there:
            return 0.0
        self.data["boot"][f"lasts:{key}"] = since
        return max(0.0, float(self._now - since))

    def counter_delta(self, key: str, value: float) -> CounterDelta | None:
        """How a counter grew since the last look; None at the first, and where it was reset."""
        last = self.data["boot"].get(f"rise:{key}")
        self.data["boot"][f"rise:{key}"] = [self._now, value]
        if last is None or value < last[1] or self._now <= last[0]:
            return None
        return CounterDelta(by=value - last[1], over_s=self._now - last[0])

    def recent(
        self, key: str, value: Any, within_s: float, *, and_before: bool = False
    ) -> list[tuple[float, Any]]:
        """Add a sample; returns those of the last `within_s` seconds, oldest first: (at, value).

        With `and_before` the last one before that comes first, however old it is.
        """
        samples = self.data["boot"].get(f"recent:{key}", [])
        kept = [s for s in samples if s[0] > self._now - within_s]
        kept = [*kept, [self._now, value]][-MAX_SAMPLES:]
        if and_before:
            kept = [*[s for s in samples if s[0] <= self._now - within_s][-1:], *kept]
        self.data["boot"][f"recent:{key}"] = kept
        return [(at, sample) for at, sample in kept]


@dataclass(slots=True, kw_only=True)
class Ctx:
    """Given to every check. Paths are relative to the root, as "proc/meminfo"."""

    root: Path
    node: str
    now: float  # seconds since the epoch
    boot_id: str
    memory: Memory
    site: Mapping[str, Any] = field(default_factory=dict)  # what several checks go by
    repaired: float = 0.0  # what is older says nothing of what is there now; seconds since epoch
    remembers: bool = True  # whether the next look will have `memory`
    others: Mapping[str, Any] = field(default_factory=dict)  # what checks kept at the last look
    announce: Callable[[str], None] = field(
        default=lambda _: None
    )  # announces a call that may hang

    @property
    def live(self) -> bool:
        """Whether the root is this machine, and not a tree of files."""
        return self.root == Path("/")

    def remembered(self, check: str) -> Memory:
        """What another check, without targets, remembered at the last look; only to be read."""
        return Memory(self.others.get(check, {}), self.now)

    def since_repair(self, key: str, count: int) -> int:
        """How much of a count that a boot alone clears came after the repair, where one was told.

        Raises OSError.
        """
        if not self.repaired or not self.remembers:
            return count
        if self.now - float(self.text("proc/uptime").split()[0]) >= self.repaired:
            return count  # booted since
        earlier = self.memory.get(f"repaired:{key}")
        before = count if earlier is None else min(count, int(earlier))
        self.memory.put(f"repaired:{key}", before)
        return count - before

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str:
        """A small file, stripped. Raises OSError, which makes the check UNKNOWN.

        A carriage return stays one: the kernel lets names of mounts and programs hold it.
        """
        return self.path(path).read_bytes().decode(errors="replace").strip()

    def maybe(self, path: str) -> str | None:
        """A small file, stripped; None where there is no such file. Raises OSError otherwise."""
        try:
            return self.text(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def number(self, path: str) -> int:
        """A file that holds one number. Raises OSError, Unknown where it holds something else."""
        text = self.text(path)
        try:
            return int(text, 0)
        except ValueError:
            raise Unknown(f"/{path.lstrip('/')} holds {text[:40]!r}, not a number") from None

    def names(self, folder: str) -> list[str]:
        """What a folder holds, sorted; nothing where it is not there. Raises OSError otherwise."""
        try:
            return sorted(entry.name for entry in self.path(folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def command(self, *argv: str, deadline_s: float, lacking: Unknown | None = None) -> Completed:
        """Run a program of this machine to its end or its deadline; it speaks English (LC_ALL=C).

        Raises Unknown where it is not installed (rc 127; `lacking` in its place) or did not answer,
        and where root would run what another user could have put there; NoRight where it says that
        it may not.
        """
        from supervisor.host import trusted
        from supervisor.proc import run_sync

        if why := trusted.program(argv[0]):
            raise Unknown(f"{argv[0]} is not run as root: {why}")
        self.announce(" ".join(argv))
        done = run_sync(argv, deadline_s=deadline_s, env={**os.environ, "LC_ALL": "C"})
        if done.rc is None:
            raise Unknown(done.why())
        if done.rc == 127:
            raise lacking or Unknown(f"{argv[0]} is not installed")
        if done.rc and os.geteuid() != 0 and any(word in done.err for word in _DENIED):
            said = done.err.strip().splitlines()[-1][:100]
            raise NoRight("device files", f" ({argv[0]}: {said})")
        return done
