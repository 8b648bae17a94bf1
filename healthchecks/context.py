"""What a check may look at: files below a root, NVML, the kernel's log, and its own memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from healthchecks.check import Unknown

if TYPE_CHECKING:
    from healthchecks.nvml import Nvml
    from supervisor.proc import Completed

MOST_SAMPLES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Rise:
    """How a counter grew since the last look of the same boot."""

    by: float
    over_s: float

    @property
    def per_s(self) -> float:
        return self.by / self.over_s if self.over_s > 0 else 0.0


class Memory:
    """What a check remembers on this node from one run to the next.

    Forgotten when the node boots, unless it is put as `lasting`; a repair forgets that too
    (`superv accept`). Key what belongs to a device by its serial number or GUID.
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

    def rise(self, key: str, value: float) -> Rise | None:
        """How a counter grew since the last look; None at the first, and where it was reset."""
        last = self.data["boot"].get(f"rise:{key}")
        self.data["boot"][f"rise:{key}"] = [self._now, value]
        if last is None or value < last[1] or self._now <= last[0]:
            return None
        return Rise(by=value - last[1], over_s=self._now - last[0])

    def recent(self, key: str, value: Any, within_s: float) -> list[tuple[float, Any]]:
        """Add a sample; returns those of the last `within_s` seconds, oldest first: (at, value)."""
        kept = [
            s for s in self.data["boot"].get(f"recent:{key}", []) if s[0] > self._now - within_s
        ]
        kept = [*kept, [self._now, value]][-MOST_SAMPLES:]
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
    doing: Callable[[str], None] = field(default=lambda _: None)  # announces a call that may hang

    @property
    def live(self) -> bool:
        """Whether the root is this machine, and not a tree of files."""
        return self.root == Path("/")

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str:
        """A small file, stripped. Raises OSError, which makes the check UNKNOWN."""
        return self.path(path).read_text(errors="replace").strip()

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

    def nvml(self) -> Nvml:
        """NVML, initialised. Raises Skip where no NVIDIA GPU is, Unknown without a library."""
        from healthchecks.nvml import opened

        return opened(self)

    def command(self, *argv: str, deadline_s: float) -> Completed:
        """Run a program of this machine to its end or its deadline.

        Raises Unknown where it is not installed (rc 127) or did not answer.
        """
        from supervisor.proc import run_sync

        self.doing(" ".join(argv))
        done = run_sync(argv, deadline_s=deadline_s)
        if done.rc is None:
            raise Unknown(done.why())
        if done.rc == 127:
            raise Unknown(f"{argv[0]} is not installed")
        return done
