"""What the last lines of ranks say by the signatures of supervisor/signatures. Pure.

The same judgement as of a job's logs (verdict), over the few lines that came with each rank's end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from supervisor.core.last_words import unlabelled
from supervisor.core.sighting import JobShape, Sighting
from supervisor.core.types import RankExit
from supervisor.core.verdict import Diagnosis, diagnosed
from supervisor.signatures import Blames, Role, load

_GPUS = ("gpu-memory-error", "gpu-lost", "gpu-error", "nvlink-error")
# Memory runs out for a program's reasons and for a node's: another attempt tells.
_MEMORY = ("cuda-out-of-memory", "host-out-of-memory")


def told(ends: Iterable[RankExit], slots: tuple[str, ...]) -> Diagnosis:
    """Judge the last lines of ranks that ended, on the nodes of the slots."""
    ended = list(ends)
    shape = JobShape(
        nodes=slots,
        ranks=frozenset(end.rank for end in ended),
        node_of={end.rank: end.node for end in ended},
    )
    return diagnosed(_sightings(ended), shape, load())


def _sightings(ends: Iterable[RankExit]) -> Iterator[Sighting]:
    order = 0
    for end in ends:
        for number, line in enumerate(end.tail, 1):
            signature, _ = load().find(unlabelled(line))
            if signature is None:
                continue
            order += 1
            yield Sighting(
                signature=signature,
                source=f"rank {end.rank}",
                line=number,
                text=line,
                order=order,
                node=end.node,
                rank=end.rank,
                at=end.at,
            )


def hardware(found: Diagnosis) -> tuple[str, ...]:
    """The nodes whose GPUs the lines themselves name; empty where they name none.

    A driver that does not work, or a GPU in use, may as well be what all nodes were told to do.
    """
    root = found.evidence[0].signature if found.evidence else None
    if root is None or root.role is not Role.CAUSE or root.blames is not Blames.GPU:
        return ()
    if found.cause.name not in _GPUS:
        return ()
    return tuple(dict.fromkeys(one.node for one in found.culprits if one.node))


def no_node_s_fault(found: Diagnosis) -> bool:
    """Whether the lines say what went wrong, and no node can be the reason, however often."""
    root = found.evidence[0].signature if found.evidence else None
    return (
        root is not None
        and root.role is Role.CAUSE
        and root.blames is Blames.NOBODY
        and not root.general
        and found.cause.name not in _MEMORY
    )
