"""Which nodes superv drains in Slurm, and which of its own drains it lifts. Pure: decides only.

A node is drained for a fault of its own that a second run of its check confirmed. A drain that
superv did not set, or whose reason somebody changed, is a person's: it is never touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from healthchecks.frame.check import Blame
from healthchecks.frame.registry import registered
from healthchecks.frame.report import Finding
from launchers.slurm_rows import SlurmNode, given_reason
from supervisor.core.check_status import Status
from supervisor.core.nodeset import compress
from supervisor.fleet.brake import Brake
from supervisor.fleet.types import Drain, blame

MARK = "superv: "
PASSES_TO_RESUME = 2  # reports in a row without a fault before an own drain is lifted
MAX_REASON_CHARS = 200
UNTELLING = ("down", "unknown", "inval", "reboot", "power")  # states that may hide a drain


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainDecision:
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
        and not finding.by_users()
        and (check is None or check.drains)
    )


def drainable_of(findings: Sequence[Finding]) -> list[Finding]:
    """Those that may drain their node, of all findings of one look at it.

    A check with a `witness` counts where another check saw the fault by other means: one of that
    resource failed too, or the check itself looked there.
    """
    found = [f for f in findings if drainable(f)]
    checks = registered()
    seen_by = {checks[f.check].resource for f in found if f.check in checks}
    return [
        f
        for f in found
        if f.check not in checks
        or not (witness := checks[f.check].witness)
        or witness in seen_by
        or f.result.corroborated
    ]


def decide(
    *,
    confirmed: Mapping[str, Sequence[Finding]],
    brake: Brake,
    slurm: Mapping[str, SlurmNode],
    own: Mapping[str, Drain],
    passes: Mapping[str, int],
) -> tuple[list[DrainDecision], str]:
    """The decisions, and why nothing is drained where that is so.

    `confirmed`: findings that two reports in a row made, by node; `slurm`: all nodes; `own`:
    superv's drains that it has not lifted; `passes`: reports without a fault since.
    """
    decisions = []
    for node, drain in own.items():
        now = slurm.get(node)
        if now is None or now.word.startswith(UNTELLING):
            continue  # Slurm does not know it any more, or does not say whether it is drained
        if not now.drains:
            decisions.append(
                DrainDecision(node=node, act="forget", reason="it is drained no longer")
            )
        elif not same_reason(now.given_reason, drain.reason):
            decisions.append(
                DrainDecision(node=node, act="forget", reason=f"a person's now: {now.given_reason}")
            )
        elif passes.get(node, 0) >= PASSES_TO_RESUME:
            decisions.append(
                DrainDecision(node=node, act="resume", reason=f"passed {passes[node]} times")
            )
    new = [
        DrainDecision(node=node, act="drain", reason=reason_for(found))
        for node, findings in confirmed.items()
        if (found := drainable_of(findings))
        and node in slurm
        and not slurm[node].drains
        and not slurm[node].word.startswith(("down", "fail", "maint", "reserved"))
    ]
    if new and brake.holds(len(new)):
        names = compress(d.node for d in new)
        word = "node" if len(new) == 1 else "nodes at once"
        return decisions, f"{len(new)} {word} not drained ({names}): {brake.text()}"
    return decisions + new, ""


def same_reason(one: str, other: str) -> bool:
    """Whether two reasons are the same, however Slurm's tools have spaced or prolonged them."""
    return given_reason(one).split() == given_reason(other).split()


def reason_for(findings: Sequence[Finding]) -> str:
    """The drain's reason, as `superv: gpu.count: 7 of 8 GPUs`, on one line of plain characters."""
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    text = f"{findings[0].name}: {findings[0].result.seen}"
    plain = (c if " " <= c <= "~" and c not in "'\"\\|" else " " for c in text)
    text = " ".join("".join(plain).split())
    return (MARK + text)[: MAX_REASON_CHARS - len(more)].rstrip() + more


def drained_finding(reason: str) -> str:
    """The finding that a reason of superv's names."""
    return reason.removeprefix(MARK).partition(": ")[0]


def scontrol_command(decision: DrainDecision) -> str:
    """What a person with the rights would type."""
    import shlex

    argv = ["scontrol", "update", f"NodeName={decision.node}"]
    if decision.act == "drain":
        argv += ["State=DRAIN", f"Reason={decision.reason}"]
    else:
        argv += ["State=RESUME"]
    return shlex.join(argv)
