"""What superv never decides about a run: blame, budgets, waits. Numbers: docs/invariants.md."""

from __future__ import annotations

from collections.abc import Iterator

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.actions import Action
from supervisor.core.check_status import Status
from supervisor.core.diagnose import SHARED_CAUSE_NODES, inferred_lately, over_budget
from supervisor.core.phases import LEADS_TO
from supervisor.core.ports import JobState
from supervisor.core.renewal import sureness
from supervisor.core.step import Breach, Step, keys
from supervisor.core.transition import EXPIRIES, stands_still
from supervisor.core.types import (
    AllocationState,
    Cause,
    Confidence,
    NodeState,
    Phase,
    Run,
)

ENGINE_SLACK_S = 30.0  # after an engine's start agents get this long before a deadline counts
REFUSED_S = 60.0  # how long a run waits that an action was refused to
CLOCK_SLACK_S = 0.001  # sums of floats


# --- 2: unknown -----------------------------------------------------------------------------------


def unknown(s: Step) -> Iterator[Breach]:
    if isinstance(s.event, ev.Waiting):
        if s.run is not s.before and s.run != s.before:
            yield Breach("the world did not answer, and the run changed", keys(s.new))
    elif isinstance(s.event, ev.HealthSeen) and s.event.status is not Status.FAIL:
        name, status = s.event.node, s.event.status
        old, node = s.before.pool.get(name), s.run.pool.get(name)
        if old is not None and node is not None and old.state is not node.state:
            if old.state is NodeState.READY:
                yield Breach(f"{name} is taken away, and its checks say {status}")
            elif status is Status.UNKNOWN and node.state is NodeState.READY:
                yield Breach(f"{name} is taken for healthy, and its checks say {status}")
        if new := _newly_excluded(s):
            yield Breach(f"{', '.join(new)} excluded by a check that says {status}", nodes=new)


# --- 5: blame -------------------------------------------------------------------------------------


def _newly_excluded(s: Step) -> tuple[str, ...]:
    if s.run.excluded is s.before.excluded:
        return ()
    return tuple(sorted(s.run.excluded.keys() - s.before.excluded.keys()))


def blame(s: Step) -> Iterator[Breach]:
    new = _newly_excluded(s)
    if not new:
        return
    last = s.run.incidents[-1] if s.run.incidents else None
    verdict = last.verdict if last else None
    if last is None or verdict is None or verdict.confidence is Confidence.UNNAMED:
        yield Breach(f"{', '.join(new)} excluded, and no verdict names a node", nodes=new)
        return
    named = {e.node for e in last.evidence}
    for name in new:
        if name not in verdict.culprits or name not in named:
            yield Breach(f"{name} excluded, and the verdict does not name it", nodes=(name,))
    together = verdict.culprits
    if verdict.confidence is Confidence.INFERRED:
        together = tuple(inferred_lately(s.run, new[0], last.confirmed_at))
    if len(together) >= SHARED_CAUSE_NODES:
        yield Breach(f"{', '.join(new)} excluded, of {len(together)} within a minute", nodes=new)


# --- 6: budgets -----------------------------------------------------------------------------------


def budgets(s: Step) -> Iterator[Breach]:
    before, run = s.before, s.run
    spent = run.restarts_without_progress
    starts = s.orders(act.Start, act.Submit)
    if starts:
        limit = run.spec.policy.restarts_without_progress
        for cause, tries in spent.items():
            if over_budget(run, cause, tries):
                yield Breach(f"restart {tries} for {cause}; {limit} are allowed", keys(starts))
    if isinstance(s.event, ev.ResumeRequested | ev.QuarantineRequested):
        return  # a person may say that what was progress is none, and begin the count anew
    if run.best_step < before.best_step:
        yield Breach(f"progress is taken back to step {run.best_step}")
    old = {} if run.best_step > before.best_step else before.restarts_without_progress
    if spent is not old:
        for cause, tries in old.items():
            if spent.get(cause, 0) < tries:
                yield Breach(f"tries for {cause} are forgotten, and nothing new is verified")
    new = _new_verdict(s)
    if new is not None and not run.ended and spent.get(new, 0) <= old.get(new, 0):
        yield Breach(f"a restart for {new} is not counted", keys(s.new))


def _new_verdict(s: Step) -> Cause | None:
    """The cause of the verdict that this step gave."""
    old, incidents = s.before.incidents, s.run.incidents
    if incidents is old or not incidents or (verdict := incidents[-1].verdict) is None:
        return None
    known = len(old) == len(incidents) and old[-1].verdict is not None
    return None if known else verdict.cause


# --- 7: waiting -----------------------------------------------------------------------------------


def waiting(s: Step) -> Iterator[Breach]:
    run, deadline = s.run, s.run.deadline
    if not waits_for_something(run):
        yield Breach(f"nothing will ever end the phase {run.phase.value}")
    if deadline is None or deadline is s.before.deadline:
        return
    length = EXPIRIES[deadline.kind].most_s(run.spec.policy)
    if isinstance(s.event, ev.EngineStarted | ev.IsolationEnded):
        old = s.before.deadline
        length = max(length, ENGINE_SLACK_S, old.at - s.event.at if old else 0.0)
    if not -CLOCK_SLACK_S <= deadline.at - s.event.at <= length + CLOCK_SLACK_S:
        yield Breach(
            f"the deadline {deadline.kind.value!r} is {deadline.at - s.event.at:.1f} s away; "
            f"it may be up to {length:.1f} s"
        )


def waits_for_something(run: Run) -> bool:
    """Whether something will end the phase: a deadline, an answer, the ranks' end, Slurm's word."""
    return bool(
        run.ended
        or run.deadline is not None
        or run.pending
        or run.isolated_since is not None
        or run.phase is Phase.RUNNING
        or (run.phase is Phase.PENDING and run.live_jobs)
    )


# --- 8: people ------------------------------------------------------------------------------------


def people(s: Step) -> Iterator[Breach]:
    before, run = s.before, s.run
    begun = before.attempt is not None and before.attempt.started_at is not None
    for order in s.orders(act.Prepare, act.Start, act.Submit):
        if isinstance(order, act.Submit):
            if left := sorted({*run.operator_excluded, *run.excluded} - set(order.exclude)):
                yield Breach(f"{order.key} asks for {', '.join(left)} too", (order.key,))
        elif isinstance(order, act.Prepare) or not begun:
            assert isinstance(order, act.AgentCommand)
            if order.node in run.operator_excluded or order.node in run.excluded:
                yield Breach(f"{order.key}: {order.node} is excluded", (order.key,))
    if before.excluded is not run.excluded:
        back = before.excluded.keys() - run.excluded.keys()
        asked = s.event.include if isinstance(s.event, ev.ResumeRequested) else ()
        asked = s.event.nodes if isinstance(s.event, ev.IncludeRequested) else asked
        traded = {name for name in back if sureness(before.excluded[name]) is not None}
        if wrong := sorted(back - {*asked} - traded):
            yield Breach(f"{', '.join(wrong)} is not excluded any more, and nobody asked for that")
    if before.stopping_as is Phase.STOPPED and Phase.STOPPED not in (run.stopping_as, run.phase):
        yield Breach("a person asked for the end of the run, and it goes on", keys(s.new))
    if isinstance(s.event, ev.AllocationSeen) and s.event.state is JobState.CANCELLED:
        job = before.allocations.get(s.event.job_id)
        ours = job is None or job.cancelled or job.state is AllocationState.ENDED or before.ended
        if not ours and run.phase is not Phase.STOPPED:
            yield Breach(f"a person cancelled job {s.event.job_id}", keys(s.new))


# --- 9: keys --------------------------------------------------------------------------------------


def unique_keys(s: Step) -> Iterator[Breach]:
    seen: dict[str, Action] = {}
    for action in s.actions:
        key = action.key
        other = seen.setdefault(key, action)
        waits = s.before.pending.get(key, action)
        if any(x is not action and x != action for x in (other, waits, s.run.pending.get(key))):
            yield Breach(f"{key} names two actions", (key,))
    if s.whole:
        for key, action in s.run.pending.items():
            if key != action.key:
                yield Breach(f"{action.key} is pending as {key}")
            if key not in seen and s.before.pending.get(key) != action:
                yield Breach(f"{key} is pending, and was not ordered")


# --- 11: ended ------------------------------------------------------------------------------------

_AFTER_THE_END = (act.Leave, act.Cancel, act.KeepLogs, act.Discard, act.Quarantine)


def ended(s: Step) -> Iterator[Breach]:
    before, run = s.before, s.run
    if (
        before.ended
        and run.phase is not before.phase
        and not isinstance(s.event, ev.ResumeRequested)
    ):
        yield Breach(f"a run that was {before.phase.value} is {run.phase.value}", keys(s.new))
    if not run.ended:
        return
    moved = isinstance(s.event, ev.EngineStarted)  # agents need its address to be told to leave
    for action in s.new:
        if not isinstance(action, _AFTER_THE_END) and not (
            moved and isinstance(action, act.SendKeys)
        ):
            yield Breach(f"{action.key}: the run is {run.phase.value}", (action.key,))


# --- 13: phases -----------------------------------------------------------------------------------

_PASSED = (Phase.STOPPING, Phase.TRIAGE)  # entered and left within a step where nobody is asked


def _reachable(phase: Phase) -> frozenset[Phase]:
    """Where one step may lead from the phase."""
    found, new = {phase}, {phase}
    while new:
        new = {
            after
            for at in new
            if at is phase or at in _PASSED
            for after in LEADS_TO[at]
            if after not in found
        }
        found |= new
    return frozenset(found)


_REACHABLE = {phase: _reachable(phase) for phase in Phase}


def phases(s: Step) -> Iterator[Breach]:
    if isinstance(s.event, ev.RunEnded):
        return  # told by the journal, whatever the phase is that today's code came to
    if s.run.phase is not s.before.phase and s.run.phase not in _REACHABLE[s.before.phase]:
        yield Breach(f"{s.before.phase.value} does not lead to {s.run.phase.value}")


# --- 15: cut off ----------------------------------------------------------------------------------

_OF_SILENCE = (ev.HeartbeatLost, ev.StepOverdue, ev.HangDetected)


def cut_off(s: Step) -> Iterator[Breach]:
    before, run = s.before, s.run
    if before.isolated_since is None or run.isolated_since is None or before.ended:
        return
    changed = run is not before and run != before
    if isinstance(s.event, _OF_SILENCE) and changed:
        yield Breach(f"{type(s.event).__name__} counts, and most agents are silent", keys(s.new))
    passed = isinstance(s.event, ev.DeadlineExpired) and stands_still(before, s.event.kind)
    if passed and changed:
        yield Breach("a deadline passes, and most agents are silent", keys(s.new))
    if new := _newly_excluded(s):
        yield Breach(f"{', '.join(new)} excluded, and most agents are silent", nodes=new)
    restarts = s.before.phase is Phase.TRIAGE and s.orders(act.Prepare)
    if restarts:
        yield Breach("nodes are prepared, and most agents are silent", keys(restarts))


# --- 14: explained --------------------------------------------------------------------------------


def explained(s: Step) -> Iterator[Breach]:
    run = s.run
    if run.phase is not s.before.phase and not run.reason:
        yield Breach(f"the run is {run.phase.value}, and nothing says why")
    if run.incidents is not s.before.incidents and run.incidents:
        last = run.incidents[-1]
        if not last.evidence:
            yield Breach(f"the incident {last.cause} has no evidence")
        if last.verdict is not None and not last.verdict.why:
            yield Breach(f"the verdict {last.verdict.cause} does not say why")
    for name in _newly_excluded(s):
        if not run.excluded[name].reason:
            yield Breach(f"{name} is excluded, and nothing says why", nodes=(name,))
