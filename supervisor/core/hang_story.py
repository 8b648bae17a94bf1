"""What watchdogs of several ranks tell together: who is behind, or that ranks called different
collectives. Pure.

torch's watchdog prints, on every rank that waits, which collective it waits in (SeqNum, OpType) and
the last one that it enqueued (ProcessGroupNCCL.cpp). The rank whose last is the lowest had not
entered what the others wait in. More than 60 % of such timeouts are made on the CPU side (PyTorch's
flight recorder), by uneven data or a slow save: so that rank is where to look, and not yet guilty.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from supervisor.core.sighting import JobShape, Sighting

# From NCCL's release notes and issues: version that hangs, from … to before …, what and the fix.
KNOWN_HANGS = (
    ((2, 26, 2), (2, 26, 3), "send and receive hang with NCCL_CUMEM_ENABLE=0 (NVIDIA/nccl#1721)"),
    ((2, 28, 0), (2, 28, 9), "the proxy's order of operations can deadlock at scale; use 2.28.9"),
)
# Collectives that NCCL wants called with one count by all ranks, by torch's names for them
# (NCCL's user guide, collective operations).
EVEN = frozenset({"ALLREDUCE", "BROADCAST", "REDUCE", "_ALLGATHER_BASE", "_REDUCE_SCATTER_BASE"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """What is known of a collective that did not end."""

    cause: str
    why: str
    lines: tuple[Sighting, ...] = ()
    ranks: tuple[int, ...] = ()  # where to look
    decide: str = ""


def hang(told: Sequence[Sighting], shape: JobShape) -> Hang | None:
    """Compare the ranks' watchdogs; None where fewer than two of them told anything."""
    waits = [one for one in told if "seq" in one.facts and one.rank is not None]
    lasts = [one for one in told if "last" in one.facts and one.rank is not None]
    return (
        _different(waits)
        or _behind(lasts, shape)
        or _silent(waits, shape)
        or _known_version(waits, shape)
    )


def _different(waits: Sequence[Sighting]) -> Hang | None:
    """Ranks wait at one place of one group in different collectives."""
    group = {(o.rank, o.facts["seq"]): o.facts["pg"] for o in waits if "pg" in o.facts}
    by_place: dict[tuple[str, str], list[Sighting]] = defaultdict(list)
    for one in waits:
        seq = one.facts["seq"]
        if "op" in one.facts and (name := group.get((one.rank, seq))):
            by_place[name, seq].append(one)
    for (_, seq), there in by_place.items():
        sized = all("numel" in one.facts for one in there)
        ops = {_called(one, sized): one for one in reversed(there)}
        if len(ops) > 1:
            words = ", ".join(f"rank {one.rank} {op}" for op, one in ops.items())
            return Hang(
                cause="collective-mismatch",
                why=f"ranks are in different collectives at number {seq}: {words}; that is the "
                "program's order, and no node's fault",
                lines=tuple(ops.values()),
                decide="the ranks' stacks, or TORCH_DISTRIBUTED_DEBUG=DETAIL",
            )
    return None


def _called(one: Sighting, sized: bool) -> str:
    """The collective that a rank is in; with its size where all ranks must give the same one."""
    op = one.facts["op"]
    return f"{op} of {one.facts['numel']} elements" if sized and op in EVEN else op


def _behind(lasts: Sequence[Sighting], shape: JobShape) -> Hang | None:
    """One rank had not enqueued what the others wait in."""
    by_group: dict[str, dict[int, tuple[int, Sighting]]] = defaultdict(dict)
    for one in lasts:
        if one.rank is not None:
            number = int(one.facts["last"])
            by_group[one.facts.get("pg", "")][one.rank] = (number, one)
    for ranks in by_group.values():
        if len(ranks) < 3:
            continue
        low = min(number for number, _ in ranks.values())
        behind = sorted(rank for rank, (number, _) in ranks.items() if number == low)
        high = (
            min(number for number, _ in ranks.values() if number > low)
            if any(number > low for number, _ in ranks.values())
            else low
        )
        if high > low and len(behind) * 4 <= len(ranks):
            return Hang(
                cause="collective-timeout",
                why=f"rank {', '.join(map(str, behind[:4]))} enqueued collective {low} last, the "
                f"others {high} and more: it had not entered what they wait in",
                lines=tuple(ranks[rank][1] for rank in behind[:2])
                + tuple(one for number, one in ranks.values() if number > low)[:1],
                ranks=tuple(behind),
                decide=f"the stack of rank {behind[0]} (py-spy, flight recorder); the same node in "
                "another attempt is the node, the same rank elsewhere is the program or its data",
            )
    return None


def _silent(waits: Sequence[Sighting], shape: JobShape) -> Hang | None:
    """All ranks but a few wait; those say nothing."""
    waiting = {one.rank for one in waits}
    silent = sorted(shape.ranks - {rank for rank in waiting if rank is not None})
    if len(waiting) < 3 or not silent or len(silent) * 4 > len(waiting):
        return None
    return Hang(
        cause="collective-timeout",
        why=f"{len(waiting)} ranks wait in a collective, and rank "
        f"{', '.join(map(str, silent[:4]))} does not: it had not come there, or had ended",
        lines=tuple(waits[:3]),
        ranks=tuple(silent),
        decide=f"what rank {silent[0]} did: its stack, its last lines, its node's kernel log",
    )


def _known_version(waits: Sequence[Sighting], shape: JobShape) -> Hang | None:
    """All ranks wait in the same collective, in a version that is known for it."""
    if len({one.rank for one in waits}) < 2:
        return None
    known = known_hang(shape.nccl)
    waiting = {one.rank for one in waits}
    if not known or not shape.ranks <= waiting:
        return None
    return Hang(
        cause="nccl-hang",
        why=f"all {len(waiting)} ranks wait in one collective, with NCCL {shape.nccl}: {known}",
        lines=tuple(waits[:3]),
        decide="whether it stays with a newer NCCL; a hang that stays when nodes are swapped is "
        "no node's",
    )


def known_hang(version: str) -> str:
    """What a version of NCCL is known to hang by, or an empty string."""
    try:
        major, minor, patch = (int(part) for part in version.split(".")[:3])
    except ValueError:
        return ""
    rows = (text for low, high, text in KNOWN_HANGS if low <= (major, minor, patch) < high)
    return next(rows, "")
