"""What the kernel's NFS client counted for each mount: /proc/self/mountstats.

The lines are those that fs/nfs/super.c, net/sunrpc/stats.c and net/sunrpc/xprtsock.c print. A
call's time in all ("execute") is its wait for a slot of the client ("queue"), the round trip to the
server ("rtt") and little else: where the queue has most of it the server is not what is slow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from healthchecks.sources.mounts import lines as lines_of
from healthchecks.sources.mounts import plain


@dataclass(frozen=True, slots=True)
class Op:
    """Counters of one operation, since the mount or over an interval, in the kernel's order."""

    calls: int = 0  # that ended
    sent: int = 0  # messages: more than calls where some were sent again
    timeouts: int = 0  # major ones: the whole of timeo and retrans went by
    bytes_out: int = 0
    bytes_in: int = 0
    queue_ms: int = 0
    rtt_ms: int = 0
    execute_ms: int = 0
    errors: int = 0  # calls that ended with an error; newer kernels

    @property
    def queue_share(self) -> float | None:
        """Of the time in all that was spent waiting in this client, %; None where it is not known.

        The kernel's clock may step: then the sums make no sense (seen: 2**64 - n).
        """
        if not 0 <= self.queue_ms <= self.execute_ms or not self.execute_ms:
            return None
        return 100.0 * self.queue_ms / self.execute_ms

    def mean_s(self, total_ms: int) -> float | None:
        """Of one of the times above, for one call."""
        sane = self.calls > 0 and 0 <= total_ms <= self.execute_ms
        return total_ms / self.calls / 1000 if sane else None

    @property
    def again(self) -> int:
        """Messages that were sent again."""
        return max(0, self.sent - self.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """One NFS mount, since it was mounted (or over an interval, see `grown`)."""

    device: str
    point: str
    age_s: int = 0
    ops: Mapping[str, Op] = field(default_factory=dict)
    transports: int = 0  # with nconnect several
    connects: int = 0
    sends: int = 0
    receives: int = 0
    backlog: int = 0  # sum over all sends of the calls that waited for a slot at that moment
    slots: int = 0  # the most that were ever in use at once on one transport

    def total(self) -> Op:
        return Op(*(sum(column) for column in zip(*map(astuple, self.ops.values()), strict=True)))

    def document(self) -> dict[str, Any]:
        """What a later look needs, as JSON can hold it."""
        return {
            "age_s": self.age_s,
            "ops": {name: list(astuple(op)) for name, op in self.ops.items()},
            "flow": [self.connects, self.sends, self.receives, self.backlog],
        }

    def since(self, document: Mapping[str, Any] | None) -> Stats | None:
        """What came to pass after the look that wrote `document`.

        None where there was none, or where it was another mount: its age or a count went back.
        """
        if document is None or self.age_s <= document["age_s"]:
            return None
        then = {name: Op(*values) for name, values in document["ops"].items()}
        ops = {name: _less(op, then.get(name, Op())) for name, op in self.ops.items()}
        flow = [self.connects, self.sends, self.receives, self.backlog]
        flow = [now - before for now, before in zip(flow, document["flow"], strict=True)]
        if min(flow) < 0 or any(op.calls < 0 for op in ops.values()):
            return None
        return Stats(
            device=self.device,
            point=self.point,
            age_s=self.age_s - document["age_s"],
            ops={name: op for name, op in ops.items() if op != Op()},
            transports=self.transports,
            connects=flow[0],
            sends=flow[1],
            receives=flow[2],
            backlog=flow[3],
            slots=self.slots,
        )


def _less(now: Op, then: Op) -> Op:
    return Op(*(a - b for a, b in zip(astuple(now), astuple(then), strict=True)))


def parse(text: str) -> dict[str, Stats]:
    """NFS mounts by mount point; of two on one point the newer. Other lines are skipped."""
    found = {}
    for head, lines in _sections(text):
        words = head.split(" ")
        # device SOURCE mounted on POINT with fstype TYPE statvers=1.1
        if len(words) >= 9 and words[7] in ("nfs", "nfs4"):
            point = plain(words[4])
            found[point] = _stats(plain(words[1]), point, lines)
    return found


def _sections(text: str) -> Iterator[tuple[str, list[str]]]:
    head = ""
    lines: list[str] = []
    for line in lines_of(text):
        if line.startswith("device ") and " mounted on " in line:
            if head:
                yield head, lines
            head, lines = line, []
        else:
            lines.append(line)
    if head:
        yield head, lines


def _stats(device: str, point: str, lines: list[str]) -> Stats:
    age, counting = 0, False
    ops: dict[str, Op] = {}
    flows: list[list[int]] = []
    for line in lines:
        name, colon, rest = line.strip().partition(":")
        words = rest.split()
        if name == "per-op statistics":
            counting = True
        elif counting and colon and len(words) >= 8 and all(w.isdecimal() for w in words):
            numbers = [int(word) for word in words[:9]]
            if any(numbers):
                ops[name] = Op(*numbers)
        elif name == "age" and words and words[0].isdecimal():
            age = int(words[0])
        elif name == "xprt" and words and (flow := _flow(words[0], words[1:])):
            flows.append(flow)
    sums = [sum(column) for column in zip(*flows, strict=True)] or [0] * 5
    return Stats(
        device=device,
        point=point,
        age_s=age,
        ops=ops,
        transports=len(flows),
        connects=sums[0],
        sends=sums[1],
        receives=sums[2],
        backlog=sums[3],
        slots=max((flow[4] for flow in flows), default=0),
    )


def _flow(kind: str, words: list[str]) -> list[int] | None:
    """connects, sends, receives, backlog, slots of one transport; None for a kind not known."""
    numbers = [int(word) if word.lstrip("-").isdecimal() else 0 for word in words]
    if kind == "udp" and len(numbers) >= 7:
        numbers = [*numbers[:2], 0, 0, 0, *numbers[2:]]
    elif kind == "local" and len(numbers) >= 9:
        numbers = [0, *numbers]
    elif kind not in ("tcp", "rdma") or len(numbers) < 10:
        return None
    slots = numbers[10] if kind != "rdma" and len(numbers) > 10 else 0
    return [numbers[2], numbers[5], numbers[6], numbers[9], slots]
