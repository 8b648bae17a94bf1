"""Which state of a node leads where, what makes it so, and what is looked at again: one table.

Tests hold every step to it, and docs/nodes.md is made of it: `python docs/make.py`. The functions
that change states are in supervisor.core.node_life and supervisor.core.liveness.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from supervisor.core.types import NodeState

S = NodeState


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a state means, where it leads, and what is looked at again while it lasts."""

    means: str
    again: str
    leads_to: Mapping[NodeState, str]  # to and when


_HEARD = "its agent is heard again, or registers; nothing else keeps ranks from it"
_HEARD_UNUSABLE = "its agent is heard again, or registers; what kept ranks from it is still so"
_LEFT = "its agent says goodbye, or its job has ended"
_GONE = "a heartbeat is missing, and Slurm has it down or not in the job any more"

STATES: Mapping[NodeState, State] = {
    S.READY: State(
        means="its agent is heard, and nothing keeps ranks from it",
        again="heartbeats, once a second; health checks, again and again",
        leads_to={
            S.SUSPECT: "no heartbeat for `policy.heartbeat_timeout_s`",
            S.LOST: _GONE,
            S.UNUSABLE: "its agent found a problem, or did not confirm that older ranks are gone; "
            "or its health checks fail while no rank runs there",
            S.LEFT: _LEFT,
        },
    ),
    S.SUSPECT: State(
        means="silent, and nobody has confirmed it",
        again="Slurm and up to three peers are asked at once, after 15 s, and then at growing "
        "times up to 120 s; a step that is overdue, every 10 s; its agent is started, with keys, "
        "where its host answers without it, or nobody can ask, or it says nothing for a minute",
        leads_to={
            S.READY: _HEARD,
            S.UNUSABLE: _HEARD_UNUSABLE,
            S.LOST: "a second witness: peers can't reach it; or a step is overdue though who "
            "reports steps is heard, and no peer reached it; or Slurm has it down or not in the "
            "job any more. Peers and Slurm count where no step came since they were asked. Where "
            "peers find its port open and nobody answers, for two minutes: at once without a slot; "
            "with one when the first step, the next one (three times the limit of a hang, where "
            "nobody who is heard tells steps) or the last ranks are overdue",
            S.LEFT: _LEFT,
        },
    ),
    S.LOST: State(
        means="silent, and a second witness said so",
        again="any message of its agent; a run that is short of nodes waits for it while Slurm "
        "has it",
        leads_to={S.READY: _HEARD, S.UNUSABLE: _HEARD_UNUSABLE, S.LEFT: _LEFT},
    ),
    S.UNUSABLE: State(
        means="its agent is heard, and something keeps ranks from it",
        again="older ranks: it is asked until it says that they are gone; health checks: again "
        "and again; a problem that its agent found: every 2 s by the agent itself",
        leads_to={
            S.READY: "it says that older ranks are gone, its health checks pass, or its agent "
            "finds no problem any more",
            S.SUSPECT: "no heartbeat for `policy.heartbeat_timeout_s`",
            S.LOST: _GONE,
            S.LEFT: _LEFT,
        },
    ),
    S.LEFT: State(
        means="its agent said goodbye, or its job has ended",
        again="nothing: an agent that comes registers",
        leads_to={
            S.READY: "an agent registers there",
            S.UNUSABLE: "an agent registers there, with a problem",
        },
    ),
}


def page() -> str:
    """docs/nodes.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# The states of a node"
    yield ""
    yield "<!-- Made by `python docs/make.py`; don't edit. -->"
    yield ""
    yield "Tests hold every step of a run to this table. A slot makes a ready node an active one;"
    yield "without a slot it is a spare. Excluded is no state: an excluded node takes no slot,"
    yield "whatever its state, and neither does one that Slurm has taken out of the job."
    yield "While the engine is cut off, silence makes no node suspect."
    yield ""
    yield "| state | means | looked at again |"
    yield "|---|---|---|"
    for state, one in STATES.items():
        yield f"| `{_word(state)}` | {one.means} | {one.again} |"
    yield ""
    yield "| from | to | when |"
    yield "|---|---|---|"
    for state, one in STATES.items():
        for target, when in one.leads_to.items():
            yield f"| `{_word(state)}` | `{_word(target)}` | {when} |"


def _word(state: NodeState) -> str:
    return state.name.lower()
