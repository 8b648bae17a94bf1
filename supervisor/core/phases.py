"""Which phase of a Run leads where, and when: the one table of it.

Tests hold every step to it, and docs/phases.md is made of it:
`python docs/make.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from supervisor.core.types import ENDED, Phase

P = Phase

_ENDS_EARLY = {P.STOPPED: "a person ends it: `superv stop` without ranks, or scancel"}

LEADS_TO: Mapping[Phase, Mapping[Phase, str]] = {
    P.PENDING: {
        P.PENDING: "launched: nodes are requested, or again after a refusal",
        P.GATHERING: "Slurm grants the nodes",
        P.STOPPING: "the job ends before it is granted",
        P.HELD: "Slurm refuses the request",
        **_ENDS_EARLY,
    },
    P.GATHERING: {
        P.GATHERING: "enough agents for every slot: the spares are waited for; or a longer wait",
        P.CHECKING: "agents for every slot have registered",
        P.PENDING: "an allocation to request, or too few nodes of this one are usable",
        P.STOPPING: "the allocation ends",
        P.HELD: "too few agents have registered in time",
        **_ENDS_EARLY,
    },
    P.CHECKING: {
        P.CHECKING: "a node falls out: a spare takes its slot",
        P.GATHERING: "a node falls out, and no spare is left",
        P.STARTING: "every slot's node is free of older ranks",
        P.PENDING: "a node falls out, with an allocation to request",
        P.STOPPING: "a node's health checks fail, or the allocation ends",
        P.HELD: "a person puts the last checkpoint into quarantine",
        **_ENDS_EARLY,
    },
    P.STARTING: {
        P.RUNNING: "the first step, or a new verified checkpoint",
        P.STOPPING: "a fault, no step in time, or `superv stop`",
        P.TRIAGE: "all ranks end well before a step",
        **_ENDS_EARLY,
    },
    P.RUNNING: {
        P.STOPPING: "a fault, no step for too long, ranks that ended early, or `superv stop`",
        P.TRIAGE: "all ranks end well",
        **_ENDS_EARLY,
    },
    P.STOPPING: {
        P.STOPPING: "a person stops it at once, or another reason to stop",
        P.TRIAGE: "every node that answers says that its ranks are gone, or the time is up",
        P.HELD: "the allocation ends while ranks stop at a wrong step",
        **_ENDS_EARLY,
    },
    P.TRIAGE: {
        P.CHECKING: "the verdict: go on at once",
        P.BACKOFF: "the verdict: go on after a pause",
        P.GATHERING: "the verdict: go on, and no spare is left",
        P.PENDING: "go on, with an allocation to request",
        P.HELD: "the verdict: a person has to act",
        P.DONE: "all ranks ended well",
        **_ENDS_EARLY,
    },
    P.BACKOFF: {
        P.CHECKING: "the pause is over",
        P.GATHERING: "the pause is over, and no spare is left",
        P.PENDING: "the pause is over, with an allocation to request",
        P.STOPPING: "the allocation ends",
        P.HELD: "a person has put the last checkpoint into quarantine",
        **_ENDS_EARLY,
    },
    **{end: {P.TRIAGE: "`superv resume`"} for end in (P.DONE, P.HELD, P.STOPPED)},
}


def page() -> str:
    """docs/phases.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# The phases of a run"
    yield ""
    yield "<!-- Made by `python docs/make.py`; don't edit. -->"
    yield ""
    yield "Tests hold every step of a run to this table."
    yield f"A run ends in {', '.join(f'`{phase}`' for phase in Phase if phase in ENDED)}."
    yield ""
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"  [*] --> {Phase.PENDING}"
    for source, targets in LEADS_TO.items():
        for target in targets:
            if source is not target and target is not Phase.STOPPED:
                yield f"  {source} --> {target}"
    yield "```"
    yield ""
    yield f"Not drawn: every phase but an end leads to `{Phase.STOPPED}`, and some to themselves."
    yield "A run that had ended before superv was upgraded stays so, as its journal tells."
    yield ""
    yield "| from | to | when |"
    yield "|---|---|---|"
    for source, targets in LEADS_TO.items():
        for target, when in targets.items():
            yield f"| `{source}` | `{target}` | {when} |"
