"""A signature that was seen, and what is known of the job that it was seen in. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from supervisor.signatures import LogKind, Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A line that a signature found: where, when, by whose clock."""

    signature: Signature
    source: str  # file
    line: int  # from 1
    text: str
    order: int  # in which it was read
    node: str = ""
    rank: int | None = None
    gpu: str = ""
    peer: str = ""  # the other end, as the line names it
    at: float | None = None  # seconds since the epoch by the node's clock; None: no time is known
    exact: bool = True  # whether the line itself tells it; else a line before it does
    count: int = 1  # so often by the same rank
    names_itself: bool = False  # the line itself says which node
    cleared: bool = False  # a later line takes it back
    facts: Mapping[str, str] = field(default_factory=dict)  # of a collective: pg, seq, op, last

    @property
    def kernel(self) -> bool:
        """Whether the kernel itself said it."""
        return self.signature.log in (LogKind.KERNEL, LogKind.XID)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobShape:
    """What logs and options tell of a job beside its failure."""

    nodes: tuple[str, ...] = ()
    ranks: frozenset[int] = frozenset()  # those that wrote anything
    node_of: Mapping[int, str] = field(default_factory=dict)  # rank → node
    node_at: Mapping[str, str] = field(default_factory=dict)  # address → node
    kernel_nodes: frozenset[str] = frozenset()  # whose kernel logs are there
    last_step_at: float | None = None
    last_step: int | None = None
    last_step_line: Mapping[str, int] = field(default_factory=dict)  # source → line
    nccl: str = ""  # version, as 2.28.3
