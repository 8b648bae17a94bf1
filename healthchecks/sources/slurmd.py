"""slurmd on this node: its process, and the resource limits that /proc tells of a process."""

from __future__ import annotations

import math
import re

from healthchecks.frame.context import Ctx

SLICES = ("sys/fs/cgroup/system.slice", "sys/fs/cgroup/systemd/system.slice")


def slurmd_pid(ctx: Ctx) -> str | None:
    """From where that is cheap to tell; None where slurmd does not run here."""
    import shutil

    kept = [ctx.maybe(place) for place in ("run/slurmd.pid", "run/slurm/slurmd.pid")]
    kept += [ctx.maybe(f"{folder}/slurmd.service/cgroup.procs") for folder in SLICES]
    for pid in " ".join(text or "" for text in kept).split():
        if _comm(ctx, pid) == "slurmd":
            return pid
    if shutil.which("slurmd") is None:
        return None
    return next((p for p in ctx.names("proc") if p.isdigit() and _comm(ctx, p) == "slurmd"), None)


def _comm(ctx: Ctx, pid: str) -> str | None:
    try:
        return ctx.maybe(f"proc/{pid}/comm")
    except ProcessLookupError:
        return None  # it has just ended


def limit(text: str, title: str, *, hard: bool = False) -> float | None:
    """A row of /proc/PID/limits, as "Max open files": the soft limit, or the hard one.

    math.inf where it is unlimited, None where the text does not say.
    """
    row = re.search(rf"^{title}\s+(\S+)\s+(\S+)", text, re.M)
    word = row[2 if hard else 1] if row else ""
    if word == "unlimited":
        return math.inf
    return float(word) if word.isdigit() else None
