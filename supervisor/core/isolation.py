"""The engine itself is cut off: silence then says nothing of nodes.

Nothing is concluded while that lasts. Deadlines that wait for agents stand still, no node is given
up or excluded for its silence, nothing is relaunched. It ends when agents are heard again, when
peers or Slurm say where the silent ones are, or, where some are heard all the time, after a while:
who is judged then is each silent node alone (supervisor.core.failure_detector says when). Where it
lasts, agents are started on a few of the nodes, round by round: they may have lost this engine's
address or their keys, or stand still, and one that is heard again is the beginning of its end.
"""

from __future__ import annotations

from dataclasses import replace

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.liveness import STUCK_S, help_some, look
from supervisor.core.recovery import decide
from supervisor.core.run_invariants import ENGINE_SLACK_S
from supervisor.core.transition import EXPIRIES, Transition, handles
from supervisor.core.types import NodeState, Phase


@handles(ev.EngineIsolated)
def engine_isolated(t: Transition, event: ev.EngineIsolated) -> None:
    """Whoever may know more is asked: Slurm, and peers of silent nodes that are heard."""
    if t.run.ended:
        return
    if t.run.isolated_since is None:
        t.set(isolated_since=event.since)
    silent = frozenset(event.silent)
    for name in event.silent:
        if name in t.run.pool:
            look(t, name, silent)
    if t.run.isolated_since is not None and t.at - t.run.isolated_since > STUCK_S:
        help_some(t, silent)


@handles(ev.IsolationEnded)
def isolation_ended(t: Transition, event: ev.IsolationEnded) -> None:
    if t.run.isolated_since is None:
        return
    let_deadlines_run(t)
    decide_what_waited(t)


def decide_what_waited(t: Transition) -> None:
    """The checkpoints were looked at while this engine was cut off."""
    scans = any(isinstance(a, act.Scan) for a in t.run.pending.values())
    if t.run.phase is Phase.TRIAGE and t.run.stopping_as is None and not scans:
        decide(t)


def let_deadlines_run(t: Transition) -> None:
    """Silence counts again. What stood still has as long as it had, and agents time to return."""
    since, deadline = t.run.isolated_since, t.run.deadline
    t.set(isolated_since=None)
    if since is not None:  # who is still silent is suspected first; then its agent is started
        suspects = t.run.pool.group(NodeState.SUSPECT)
        t.drop(lambda a: getattr(a, "node", "") not in suspects, among=act.StartAgent)
    if since is not None and deadline is not None and EXPIRIES[deadline.kind].of_agents:
        stood_still = max(0.0, t.at - max(since, t.run.since))
        most = max(EXPIRIES[deadline.kind].most_s(t.run.spec.policy), ENGINE_SLACK_S)
        later = min(deadline.at + stood_still, t.at + most)
        t.set(deadline=replace(deadline, at=max(later, t.at + ENGINE_SLACK_S)))
