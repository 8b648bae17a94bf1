"""Which rank ran on which node: what options, labels, NCCL, Slurm and torchelastic say of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from supervisor.core.sighting import JobShape, Sighting
from supervisor.diagnosis.inputs import JobLog
from supervisor.diagnosis.lines import LineHead, LineLabels, clean, head

_INIT = re.compile(
    r"(?:^|[\]\s])([\w.-]+):\d+:\d+ \[(\d+)\] .*\brank (\d+) nranks (\d+)(?:.*\bbusId ([0-9a-f]+))?"
)
_VERSION = re.compile(r"NCCL version (\d+\.\d+\.\d+)")
_ADDRESS = re.compile(
    r"(?:^|[\]\s])([\w.-]+):\d+:\d+ \[\d+\] .*: Using (?:.*\bOOB )?[\w-]+:([\d.a-fA-F:]+?)<"
)
_BLOCK_RANK = re.compile(r"^\s*rank\s+: (\d+) \(local_rank: (\d+)\)")
_BLOCK_HOST = re.compile(r"^\s*host\s+: (\S+)")
_WORK = re.compile(r"WorkNCCL\(SeqNum=(\d+), OpType=(\w+)(?:, NumelIn=(\d+))?")
_LAST = re.compile(r"at (?:NCCL )?work: (\d+), last enqueued(?: NCCL work)?: (-?\d+)")
_GROUP = re.compile(r"\[PG (?:ID \d+ PG GUID )?([\w()]+?) Rank \d+\]")
_BLOCK_LINES = 40  # of what torchelastic says of one rank


def collective(text: str) -> Mapping[str, str]:
    """Which collective a watchdog's line is about: pg, seq, op, numel, last."""
    facts: dict[str, str] = {}
    if "atchdog" not in text and "at NCCL work" not in text:
        return facts
    if match := _WORK.search(text):
        facts["seq"], facts["op"] = match[1], match[2]
        if match[3] is not None:
            facts["numel"] = match[3]
    if match := _LAST.search(text):
        facts["seq"], facts["last"] = match[1], match[2]
    if match := _GROUP.search(text):
        facts["pg"] = match[1]
    return facts


class RankPlaces:
    """What is known of ranks and nodes, growing while files are read."""

    def __init__(self, nodes: tuple[str, ...]) -> None:
        self._given = nodes
        self._node_of: dict[int, str] = {}
        self._node_at: dict[str, str] = {}
        self._nodes: dict[str, None] = dict.fromkeys(nodes)
        self._kernel_nodes: set[str] = set()
        self._ranks: set[int] = set()
        self._tasks: set[int] = set()
        self._bus: dict[tuple[str, str], int] = {}
        self._world = 0
        self._nccl = ""
        self._tasks_are_nodes = False

    def mark(
        self, text: str, lines: Sequence[bytes], index: int, how: LineLabels
    ) -> dict[int, LineHead] | None:
        """Take in a line that tells of places. Of a rank's block in torchelastic's summary: the
        lines that follow, and whose they are."""
        found = head(text, how)
        if match := _INIT.search(found.message):
            node, _, rank, world, bus = match.groups()
            if int(world) >= self._world:  # of the largest group: ranks of others are not the job's
                if int(world) > self._world:
                    self._node_of.clear()
                    self._bus.clear()
                self._world = int(world)
                self._node(int(rank), node)
                if bus:
                    self._bus[node, bus] = int(rank)
        elif match := _VERSION.search(text):
            self._nccl = self._nccl or match[1]
        elif match := _ADDRESS.search(found.message):
            self._node_at[match[2]] = match[1]
        elif match := _BLOCK_RANK.match(found.message):
            return self._block(int(match[1]), lines, index, how)
        return None

    def _block(
        self, rank: int, lines: Sequence[bytes], index: int, how: LineLabels
    ) -> dict[int, LineHead]:
        host = ""
        for raw in lines[max(0, index - 3) : index]:
            if match := _BLOCK_HOST.match(head(clean(raw), how).message):
                host = match[1]
        if host:
            self._node(rank, host)
        whose: dict[int, LineHead] = {}
        for offset, raw in enumerate(lines[index : index + _BLOCK_LINES]):
            if raw.lstrip()[-4:].strip() in (b"====", b"----") or (
                offset and re.search(rb"^\W*\[\d+\]:\s*$", raw)
            ):
                break
            whose[index + offset] = LineHead(message="", rank=rank, node=host)
        return whose

    def _node(self, rank: int, node: str) -> None:
        self._node_of[rank] = node
        self._nodes.setdefault(node)

    def label(self, one: Sighting, found: LineHead, file: JobLog) -> Sighting:
        """Remember who spoke, and say who it was as far as it is known by now."""
        if one.rank is not None:
            self._ranks.add(one.rank)
            if one.node and not one.kernel:
                self._node_of.setdefault(one.rank, one.node)
        if one.node:
            self._nodes.setdefault(one.node)
        if one.kernel and one.gpu and one.gpu.count(":") == 2:
            domain, bus, device = one.gpu.split(":")
            key = f"{(int(domain, 16) << 20) + (int(bus, 16) << 12) + (int(device, 16) << 4):x}"
            if (rank := self._bus.get((one.node, key))) is not None:
                one = replace(one, rank=rank)
        if found.task is not None:
            self._tasks.add(found.task)
            if one.rank is not None and one.rank != found.task:
                self._tasks_are_nodes = True
            return replace(one, facts={**one.facts, "task": str(found.task)})
        if one.rank is None and found.local is not None:
            return replace(one, facts={**one.facts, "local": str(found.local)})
        if one.rank is None and file.local is not None:
            return replace(one, facts={**one.facts, "local": str(file.local)})
        return one

    def file_ended(self, file: JobLog, how: LineLabels, *, wrote: bool, node: str) -> None:
        """A file was read to its end."""
        if how.kernel:
            if name := node or file.node:
                self._kernel_nodes.add(name)
                self._nodes.setdefault(name)
        elif wrote and file.rank is not None:
            self._ranks.add(file.rank)
            if file.node:
                self._node(file.rank, file.node)

    def settle(self, found: list[Sighting]) -> list[Sighting]:
        """Say whose each sighting is, now that all files are read."""
        self._by_order()
        many = len(self._nodes) > 1
        out = []
        for one in found:
            if one.rank is None and (task := one.facts.get("task")):
                one = self._by_task(one, int(task))
            elif one.rank is None and not many and (local := one.facts.get("local")):
                one = replace(one, rank=int(local))
                self._ranks.add(int(local))
            out.append(one)
        return out

    def _by_task(self, one: Sighting, task: int) -> Sighting:
        as_nodes = self._tasks_are_nodes or (
            len(self._given) > 1 and len(self._given) == max(self._tasks) + 1
        )
        if not as_nodes:
            self._ranks.add(task)
            return replace(one, rank=task)
        if not one.node and task < len(self._given):
            return replace(one, node=self._given[task])
        return one

    def _by_order(self) -> None:
        """Ranks lie on the given nodes in their order, as srun and torchrun place them."""
        ranks = self._ranks | ({max(self._tasks)} if self._tasks else set())
        world = max(self._world, max(ranks, default=-1) + 1)
        if not self._given or world == 0 or world % len(self._given):
            return
        each = world // len(self._given)
        for rank in range(world):
            self._node_of.setdefault(rank, self._given[rank // each])

    def shape(
        self,
        *,
        last_step: int | None,
        last_step_at: float | None,
        last_step_line: Mapping[str, int],
    ) -> JobShape:
        """What is known of the job."""
        return JobShape(
            nodes=tuple(self._nodes),
            ranks=frozenset(self._ranks),
            node_of=dict(self._node_of),
            node_at=dict(self._node_at),
            kernel_nodes=frozenset(self._kernel_nodes),
            last_step=last_step,
            last_step_at=last_step_at,
            last_step_line=dict(last_step_line),
            nccl=self._nccl,
        )
