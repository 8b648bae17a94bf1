"""Which nodes superv drains in Slurm, and which of its own drains it lifts. Pure: decides only.

A node is drained for a fault of its own that a second look confirmed. A drain that superv did not
set, or whose reason somebody changed, is a person's: it is never touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from healthchecks.check import Blame, Status
from healthchecks.registry import registered
from healthchecks.report import Finding
from launchers.slurm import NodeStatus
from supervisor.fleet import Drain, blame

MARK = "superv: "
PASSES = 2  # looks in a row without a fault before an own drain is lifted
MOST_SHARE = 0.05  # of the nodes looked at; more at once are a shared cause …
MOST_LEAST = 2  # … but this many may always go: three at once freeze the blame
REASON_CHARS = 200
NO_WORD = ("down", "unknown", "inval", "reboot", "power")  # states that may hide a drain


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do with one node in Slurm."""

    node: str
    act: str  # drain, resume, forget (the drain is a person's now, or was lifted by one)
    reason: str


def drainable(finding: Finding) -> bool:
    """Whether this finding alone may drain its node."""
    check = registered().get(finding.check)
    return (
        finding.status is Status.FAIL
        and blame(finding) is Blame.NODE
        and (check is None or check.drains)
    )


def decide(
    *,
    confirmed: Mapping[str, Sequence[Finding]],
    looked: int,
    slurm: Mapping[str, NodeStatus],
    own: Mapping[str, Drain],
    passes: Mapping[str, int],
) -> tuple[list[Decision], str]:
    """The decisions, and why nothing is drained where that is so.

    `confirmed`: findings that two looks in a row made, by node; `looked`: how many nodes were
    looked at; `own`: superv's drains that it has not lifted; `passes`: looks without a fault since.
    """
    decisions = []
    for node, drain in own.items():
        now = slurm.get(node)
        if now is None or now.state.startswith(NO_WORD):
            continue  # Slurm does not know it any more, or does not say whether it is drained
        if not now.drains:
            decisions.append(Decision(node=node, act="forget", reason="it is drained no longer"))
        elif not same(now.reason, drain.reason):
            decisions.append(
                Decision(node=node, act="forget", reason=f"a person's now: {now.reason}")
            )
        elif passes.get(node, 0) >= PASSES:
            decisions.append(
                Decision(node=node, act="resume", reason=f"passed {passes[node]} times")
            )
    new = [
        Decision(node=node, act="drain", reason=reason_for(found))
        for node, findings in confirmed.items()
        if (found := [f for f in findings if drainable(f)])
        and node in slurm
        and not slurm[node].drains
        and not slurm[node].state.startswith(("down", "fail", "maint", "reserved"))
    ]
    most = max(MOST_LEAST, int(looked * MOST_SHARE))
    if len(new) > most:
        names = ", ".join(d.node for d in new)
        return decisions, (
            f"{len(new)} nodes would be drained at once ({names}): more than {most} of {looked} "
            "have a shared cause; look at it first, or drain them by hand"
        )
    return decisions + new, ""


def same(one: str, other: str) -> bool:
    """Whether two reasons are the same, however Slurm's tools have spaced them."""
    return one.split() == other.split()


def reason_for(findings: Sequence[Finding]) -> str:
    """The drain's reason, as `superv: gpu.count: 7 of 8 GPUs`, on one line of plain characters."""
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    text = f"{findings[0].name}: {findings[0].result.seen}"
    plain = (c if " " <= c <= "~" and c not in "'\"\\|" else " " for c in text)
    text = " ".join("".join(plain).split())
    return (MARK + text)[: REASON_CHARS - len(more)].rstrip() + more


def drained_for(reason: str) -> str:
    """The finding that a reason of superv's names."""
    return reason.removeprefix(MARK).partition(": ")[0]


def command(decision: Decision) -> str:
    """What a person with the rights would type."""
    import shlex

    argv = ["scontrol", "update", f"NodeName={decision.node}"]
    if decision.act == "drain":
        argv += ["State=DRAIN", f"Reason={decision.reason}"]
    else:
        argv += ["State=RESUME"]
    return shlex.join(argv)
