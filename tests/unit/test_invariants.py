"""What superv never does: each invariant catches what breaks it, and a run outlives the refusal."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scenario import HOME, Scenario

from supervisor.channel.wire import event_from, plain
from supervisor.cli.status import _page
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.actions import Action
from supervisor.core.check_status import Status
from supervisor.core.invariants import INVARIANTS, violations
from supervisor.core.machine import transition
from supervisor.core.membership import allocation_seen
from supervisor.core.placement import assign_slots
from supervisor.core.ports import JobState
from supervisor.core.recovery import open_incident
from supervisor.core.run_invariants import REFUSED_S
from supervisor.core.status import status
from supervisor.core.story import describe
from supervisor.core.transition import EXPIRIES, HANDLERS, Transition
from supervisor.core.types import (
    Cause,
    Checkpoint,
    Confidence,
    Deadline,
    DeadlineKind,
    Evidence,
    Exclusion,
    Incident,
    NodeState,
    Phase,
    ProbeOutcome,
    Retired,
    Run,
    Verdict,
)
from supervisor.host import terminal

PAGE = Path(__file__).resolve().parents[2] / "docs/invariants.md"


def test_the_page_and_the_table_are_one_list() -> None:
    part = PAGE.read_text()
    found = re.findall(r"(?ms)^(\d+)\. (.*?)(?=^\d+\. |\n\n|\Z)", part)
    told = {int(number): " ".join(text.split()) for number, text in found}
    assert told == {number: one.sentence for number, one in INVARIANTS.items()}


# --- planted: one step by hand that breaks one invariant ----------------------------------------

Plant = tuple[int, str, Run, ev.Event, Run, list[Action]]
PLANTS: list[Callable[[], Plant]] = []


def plant(make: Callable[[], Plant]) -> Callable[[], Plant]:
    PLANTS.append(make)
    return make


def at(phase: Phase, **more: Any) -> Run:
    return Scenario(**{"backoff_s": (5.0,), **more}).to(phase).run


def later(run: Run, kind: type[ev.Event] = ev.Done, **fields: Any) -> ev.Event:
    return kind(at=run.since + 1.0, **({"key": "x"} if kind is ev.Done else {}), **fields)


def ordered(run: Run, *actions: Action) -> Run:
    return replace(run, pending={**run.pending, **{a.key: a for a in actions}})


def changed(run: Run, **changes: Any) -> Run:
    """With other fields in its attempt."""
    assert run.attempt is not None
    return replace(run, attempt=replace(run.attempt, **changes))


def node(run: Run, name: str, **changes: Any) -> Run:
    return replace(run, pool={**run.pool, name: replace(run.pool[name], **changes)})


def starting(**more: Any) -> tuple[Run, Run, list[act.Start]]:
    """Before and after the step that orders the first starts, and these."""
    p = Scenario(**more).to(Phase.CHECKING)
    *others, last = [a for a in p.run.pending.values() if isinstance(a, act.Prepare)]
    for other in others:
        p.reply(other)
    before = p.run
    p.reply(last)
    return before, p.run, [a for a in p.run.pending.values() if isinstance(a, act.Start)]


@plant
def stop_for_a_warning() -> Plant:
    run = at(Phase.RUNNING)
    stop = act.Stop(key="a1/stop/n1", node="n1", attempt=1, grace_s=10.0)
    event = later(run, ev.HealthSeen, node="n1", agent=run.pool["n1"].agent, status=Status.WARN)
    return 1, "HealthSeen ends them", run, event, ordered(run, stop), [stop]


@plant
def leave_in_training() -> Plant:
    run = at(Phase.RUNNING)
    leave = act.Leave(key="leave/n1/x", node="n1", attempt=1)
    return 1, "ranks of attempt 1 train", run, later(run), ordered(run, leave), [leave]


@plant
def cancel_in_training() -> Plant:
    run = at(Phase.RUNNING)
    cancel = act.Cancel(key="cancel/101", job_id="101", why="tidy")
    return 1, "ranks of attempt 1 train", run, later(run), ordered(run, cancel), [cancel]


@plant
def lost_while_steps_go_on() -> Plant:
    p = Scenario().to(Phase.RUNNING)
    p.silent("n2")
    p.progress(9)
    event = later(
        p.run, ev.Probed, key="x", node="n1", target="n2", outcome=ProbeOutcome.UNREACHABLE
    )
    event = replace(event, at=p.now + 1)
    deadline = Deadline(at=event.at + 5, kind=DeadlineKind.STOP)
    run = replace(p.run, phase=Phase.STOPPING, reason="node-lost", deadline=deadline)
    return 1, "Probed ends them", p.run, event, node(run, "n2", state=NodeState.LOST), []


@plant
def unknown_takes_a_node() -> Plant:
    run = at(Phase.RUNNING)
    agent = run.pool["n3"].agent
    event = later(run, ev.HealthSeen, node="n3", agent=agent, status=Status.UNKNOWN)
    return 2, "n3 is taken away", run, event, node(run, "n3", state=NodeState.UNUSABLE), []


@plant
def unknown_cures() -> Plant:
    run = at(Phase.RUNNING)
    before = node(run, "n3", state=NodeState.UNUSABLE)
    agent = run.pool["n3"].agent
    event = later(run, ev.HealthSeen, node="n3", agent=agent, status=Status.UNKNOWN)
    return 2, "n3 is taken for healthy", before, event, run, []


@plant
def no_answer_changes_the_run() -> Plant:
    run = at(Phase.RUNNING)
    event = later(run, ev.Waiting, key="x", why="squeue does not answer")
    return 2, "did not answer", run, event, replace(run, best_step=99), []


@plant
def an_attempts_number_again() -> Plant:
    before, run, _ = starting()
    run = changed(run, number=0)
    return 3, "attempt 0 begins; it has to be 2 or later", before, later(run), run, []


@plant
def an_attempts_directory_again() -> Plant:
    before, run, _ = starting()
    run = changed(run, number=2)
    return 3, "/ckpt/a0001 is another attempt's", before, later(run), run, []


@plant
def an_older_attempts_checkpoint() -> Plant:
    run = changed(at(Phase.RUNNING), number=2)
    late = Checkpoint(step=5, path=f"{HOME}/a0001/step-5", attempt=1, verified_at=1.0)
    return 3, "of attempt 1 joins", run, later(run), replace(run, lineage=(late,)), []


@plant
def begin_at_step_0() -> Plant:
    before, run, starts = starting()
    return 4, "begin at step 0", before, later(run), replace(run, best_step=7), list(starts)


@plant
def resume_what_is_not_verified() -> Plant:
    before, run, starts = starting()
    bad = replace(starts[0], resume_path=f"{HOME}/a0001/step-9", resume_step=9)
    return 4, "resumes from /ckpt/a0001/step-9", before, later(run), ordered(run, bad), [bad]


@plant
def resume_what_is_retired() -> Plant:
    seed = Checkpoint(step=40, path="/old/step-40", attempt=0, verified_at=1.0)
    before, run, starts = starting(seed=seed)
    gone = Retired(step=40, path=seed.path, at=1.0, why="bad", quarantined=True)
    run = replace(run, retired={seed.path: gone}, lineage=())
    return 4, "is not in the lineage", before, later(run), run, list(starts)


@plant
def resume_an_older_one() -> Plant:
    p = Scenario().to(Phase.RUNNING)
    p.save(10)
    p.exit(0)
    p.answer(act.Stop, act.Collect)
    before = p.run
    p.answer(act.Scan)
    run = changed(p.run, resume=None)
    return 4, "does not resume from step 10", before, later(run), run, []


def excluding(run: Run, *names: str, **verdict: Any) -> Run:
    """With nodes that the newest incident's verdict led to."""
    seen = [Evidence(node=n, at=1.0, source="agent", text="ended") for n in names]
    given = Verdict(**{"cause": Cause.RANK_EXIT, "why": "because", **verdict})
    one = Incident(attempt=1, cause=Cause.RANK_EXIT, evidence=tuple(seen), verdict=given)
    out = {n: Exclusion(node=n, reason="x", since=run.since + 1, attempt=1) for n in names}
    count = {Cause.RANK_EXIT: 1}
    return replace(run, incidents=(one,), excluded=out, restarts_without_progress=count)


@plant
def exclude_on_a_cascade() -> Plant:
    run = at(Phase.TRIAGE)
    return 5, "no verdict names a node", run, later(run), excluding(run, "n1"), []


@plant
def exclude_somebody_else() -> Plant:
    run = at(Phase.TRIAGE)
    wrong = excluding(run, "n1", culprits=("n2",), confidence=Confidence.WITNESSED)
    return 5, "the verdict does not name it", run, later(run), wrong, []


@plant
def exclude_three_at_once() -> Plant:
    run = at(Phase.TRIAGE)
    names = ("n1", "n2", "n3")
    wrong = excluding(run, *names, culprits=names, confidence=Confidence.INFERRED)
    return 5, "n1, n2, n3 excluded, of 3 within a minute", run, later(run), wrong, []


@plant
def restart_beyond_the_budget() -> Plant:
    before, run, starts = starting()
    run = replace(run, restarts_without_progress={Cause.HANG: 4})
    return 6, "restart 4 for hang; 3 are allowed", before, later(run), run, list(starts)


@plant
def forget_the_budget() -> Plant:
    run = at(Phase.BACKOFF)
    wrong = replace(run, restarts_without_progress={})
    return 6, "tries for rank-exit are forgotten", run, later(run), wrong, []


@plant
def count_nothing() -> Plant:
    before = at(Phase.TRIAGE)
    run = replace(at(Phase.BACKOFF), restarts_without_progress={})
    return 6, "a restart for rank-exit is not counted", before, later(run), run, []


@plant
def wait_for_nothing() -> Plant:
    run = at(Phase.GATHERING)
    return 7, "nothing will ever end", run, later(run), replace(run, deadline=None), []


@plant
def a_deadline_in_the_past() -> Plant:
    run = at(Phase.GATHERING)
    wrong = replace(run, deadline=Deadline(at=run.since - 9, kind=DeadlineKind.REGISTRATION))
    return 7, "'gather' is -10.0 s away", run, later(run), wrong, []


@plant
def a_deadline_too_far_off() -> Plant:
    run = at(Phase.GATHERING)
    wrong = replace(run, deadline=Deadline(at=run.since + 700, kind=DeadlineKind.REGISTRATION))
    return 7, "it may be up to 600.0 s", run, later(run), wrong, []


@plant
def start_where_people_said_no() -> Plant:
    before, run, starts = starting()
    out = {"n1": "fan"}
    return 8, "n1 is excluded", before, later(run), replace(run, operator_excluded=out), [*starts]


@plant
def ask_for_what_people_keep_out() -> Plant:
    run = replace(at(Phase.TRIAGE), operator_excluded={"n7": "fan"})
    ask = act.Submit(key="submit/2", job_name="x", nodes=3)
    wrong = ordered(replace(run, phase=Phase.PENDING), ask)
    return 8, "submit/2 asks for n7 too", run, later(run), wrong, [ask]


@plant
def take_an_exclusion_back() -> Plant:
    run = at(Phase.RUNNING)
    before = excluding(run, "n9", culprits=("n9",), confidence=Confidence.WITNESSED)
    wrong = replace(before, excluded={})
    return 8, "n9 is not excluded any more", before, later(run), wrong, []


@plant
def go_on_after_a_persons_stop() -> Plant:
    run = replace(at(Phase.STOPPING), stopping_as=Phase.STOPPED)
    return 8, "and it goes on", run, later(run), replace(run, stopping_as=None), []


@plant
def go_on_after_a_persons_cancel() -> Plant:
    run = at(Phase.RUNNING)
    event = later(
        run, ev.AllocationSeen, job_id="101", state=JobState.CANCELLED, raw="CANCELLED by 7"
    )
    return 8, "a person cancelled job 101", run, event, run, []


@plant
def one_key_for_two_actions() -> Plant:
    run = at(Phase.STOPPING)
    (stop, *_) = [a for a in run.pending.values() if isinstance(a, act.Stop)]
    other = replace(stop, grace_s=0.0)
    return 9, "names two actions", run, later(run), ordered(run, other), [other]


@plant
def start_on_a_lost_node() -> Plant:
    before, run, starts = starting()
    run = node(run, "n2", state=NodeState.LOST)
    return 10, "n2 is lost", before, later(run), run, list(starts)


@plant
def start_on_a_node_that_fails() -> Plant:
    before, run, starts = starting()
    run = node(run, "n2", health=Status.FAIL)
    return 10, "n2 fails its health checks", before, later(run), run, list(starts)


@plant
def start_where_nothing_was_checked() -> Plant:
    before, run, starts = starting()
    run = replace(run, spec=replace(run.spec, preflight=True))
    return 10, "has not been checked", before, later(run), run, list(starts)


@plant
def start_where_older_ranks_may_be() -> Plant:
    before, run, starts = starting()
    run = changed(run, prepared=("n1",))
    return 10, "n2 is not free of older ranks", before, later(run), run, list(starts)


@plant
def start_a_slot_twice() -> Plant:
    before, run, (first, second) = starting()
    wrong = replace(second, slot=0)
    run = ordered(run, wrong)
    return 10, "slot 0 is n1's", before, later(run), run, [first, wrong]


@plant
def start_without_a_port() -> Plant:
    before, run, starts = starting()
    run = changed(run, master_port=None)
    return 10, "slot 0's is None", before, later(run), run, list(starts)


@plant
def start_while_an_older_attempt_is_wanted() -> Plant:
    before, run, starts = starting()
    old = replace(starts[0], key="a0/start/n3", node="n3", attempt=0)
    return 10, "two attempts", before, later(run), ordered(run, old), list(starts)


@plant
def order_after_the_end() -> Plant:
    run = at(Phase.RUNNING)
    run = replace(run, phase=Phase.HELD, pending={}, deadline=None)
    poll = act.Poll(key="poll/101/1.0", job_id="101")
    return 11, "the run is held", run, later(run), ordered(run, poll), [poll]


@plant
def go_on_after_the_end() -> Plant:
    run = replace(at(Phase.TRIAGE), reason="anything")
    before = replace(run, phase=Phase.HELD)
    return 11, "a run that was held is triage", before, later(run), run, []


def discarding(path: str, *, newest: int, step: int = 10, resume: bool = False) -> Plant:
    run = at(Phase.RUNNING)
    there = Checkpoint(step=newest, path="/old/step", attempt=0, verified_at=1.0)
    gone = Checkpoint(step=step, path=path, attempt=0, verified_at=1.0)
    run = changed(replace(run, lineage=(there,)), resume=gone if resume else None)
    old = Retired(step=step, path=path, at=1.0, why="old")
    discard = act.Discard(key=f"discard/{path}", path=path, home=HOME)
    after = ordered(replace(run, retired={path: old}), discard)
    return 12, "", run, later(run), after, [discard]


@plant
def delete_the_newest() -> Plant:
    _, _, *rest = discarding(f"{HOME}/a0001/step-10", newest=5)
    return (12, "is the newest verified", *rest)  # type: ignore[return-value]


@plant
def delete_what_was_resumed() -> Plant:
    _, _, *rest = discarding(f"{HOME}/a0001/step-10", newest=20, resume=True)
    return (12, "is what attempt 1 resumed from", *rest)  # type: ignore[return-value]


@plant
def delete_elsewhere() -> Plant:
    _, _, *rest = discarding("/data/step-10", newest=20)
    return (12, "is not in a directory of the run's", *rest)  # type: ignore[return-value]


@plant
def delete_what_still_counts() -> Plant:
    _, _, before, event, run, actions = discarding(f"{HOME}/a0001/step-10", newest=20)
    return 12, "has not left the lineage", before, event, replace(run, retired={}), actions


@plant
def jump_over_a_phase() -> Plant:
    run = at(Phase.GATHERING)
    wrong = replace(run, phase=Phase.RUNNING)
    return 13, "gathering does not lead to running", run, later(run), wrong, []


@plant
def a_phase_without_a_reason() -> Plant:
    run = at(Phase.GATHERING)
    wrong = replace(run, phase=Phase.CHECKING, reason="")
    return 14, "nothing says why", run, later(run), wrong, []


@plant
def an_incident_without_evidence() -> Plant:
    run = at(Phase.TRIAGE)
    wrong = replace(run, incidents=(Incident(attempt=1, cause=Cause.HANG),))
    return 14, "has no evidence", run, later(run), wrong, []


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("make", PLANTS, ids=lambda f: f.__name__)
def test_what_breaks_an_invariant_is_caught(make: Callable[[], Plant], whole: bool) -> None:
    number, text, before, event, run, actions = make()
    found = violations(before, event, run, actions, whole=whole)
    assert [v.what for v in found if v.invariant == number and text in v.what], found


def isolated(phase: Phase) -> Run:
    return replace(at(phase), isolated_since=1000.0)


@plant
def a_node_lost_by_silence_alone() -> Plant:
    before = isolated(Phase.RUNNING)
    event = later(before, ev.HeartbeatLost, node="n2", last_heard=1000.0)
    run = node(before, "n2", state=NodeState.SUSPECT)
    return 15, "HeartbeatLost counts", before, event, run, []


@plant
def a_deadline_that_nobody_could_keep() -> Plant:
    before = isolated(Phase.STARTING)
    event = ev.DeadlineExpired(at=before.since + 1, kind=DeadlineKind.FIRST_STEP)
    return 15, "a deadline passes", before, event, replace(before, reason="too late"), []


@plant
def prepared_without_knowing_who_is_there() -> Plant:
    before = isolated(Phase.TRIAGE)
    prepare = act.Prepare(key="a2/prepare/n1", node="n1", attempt=2)
    return 15, "nodes are prepared", before, later(before), ordered(before, prepare), [prepare]


def test_every_invariant_is_planted_against() -> None:
    assert {make()[0] for make in PLANTS} == {*INVARIANTS}


def test_a_check_that_raises_is_shown_and_does_not_end_the_engine() -> None:
    run = at(Phase.RUNNING)
    broken = replace(run, excluded=None)  # type: ignore[arg-type]
    found = violations(run, later(run), broken, [], whole=False)
    assert any("the check failed" in v.what and not v.undone for v in found)


# --- mutants: the real step with one handler broken ---------------------------------------------

Handler = Callable[[Transition, Any], None]


class Broken(Scenario):
    """A run of a superv with a broken handler."""

    def __init__(self, kind: type[ev.Event], handler: Handler, **more: Any) -> None:
        self.handlers = {**HANDLERS, kind: handler}
        super().__init__(**{"backoff_s": (0.0,), **more})

    def fold(self, event: ev.Event) -> Transition:
        made = transition(self.run, event, self.handlers)
        assert all(made.run.pending[a.key] == a for a in made.actions)
        return made

    def rebuilt(self) -> Run:
        run: Run | None = None
        for event in self.events:
            run = transition(run, event_from(plain(event)), self.handlers).run
        assert run is not None
        return run

    def live(self) -> None:
        """The world answers all and lets deadlines pass, until the run trains or ends."""
        for _ in range(200):
            if self.run.ended or self.phase is Phase.RUNNING:
                return
            if self.run.pending:
                self.answer(Action)
            elif self.phase is Phase.PENDING and self.run.live_jobs:
                self.seen("running", nodes=tuple(self.names()[: self.size]))
            else:
                self.expire_deadline()
        raise AssertionError(f"it waits for ever: {self.phase}: {self.run.reason}")

    @property
    def refused(self) -> set[int]:
        return {v.invariant for v in self.run.violations}


def then(kind: type[ev.Event], more: Handler) -> Handler:
    """The real handler, and something that it should not do."""

    def handler(t: Transition, event: Any) -> None:
        HANDLERS[kind](t, event)
        more(t, event)

    return handler


def stop_for_health(t: Transition, event: ev.HealthSeen) -> None:
    if t.run.phase is Phase.RUNNING:
        seen = Evidence(node=event.node, at=t.at, source="health", text="it is warm")
        open_incident(t, Cause.UNHEALTHY_NODE, seen)


def test_ranks_that_train_go_on_and_the_next_good_step_too() -> None:
    p = Broken(ev.HealthSeen, then(ev.HealthSeen, stop_for_health)).to(Phase.RUNNING)
    before = p.run
    assert p.checked("n1", Status.WARN) == []
    assert replace(p.run, violations=()) == before, "the step was not taken"
    assert p.run.violations[0].undone and p.refused == {1}
    p.checked("n1", Status.WARN)
    assert [v.times for v in p.run.violations] == [2]
    p.progress(2)
    p.save(2)
    p.exit(0)
    p.recover_to_first_step()
    assert p.phase is Phase.RUNNING and p.run.attempt and p.run.attempt.resume
    assert p.rebuilt() == p.run


def exclude_at_once(t: Transition, event: ev.RankExited) -> None:
    one = Exclusion(node=event.exit.node, reason="it ended", since=t.at, attempt=1)
    t.set(excluded={**t.run.excluded, event.exit.node: one})


def test_an_exclusion_that_nothing_justifies_is_not_made() -> None:
    p = Broken(ev.RankExited, then(ev.RankExited, exclude_at_once)).to(Phase.RUNNING)
    p.exit(0)
    assert dict(p.run.excluded) == {} and p.refused == {5}
    p.recover_to_first_step()
    assert p.phase is Phase.RUNNING and p.slots == "n1 n2"


def never_give_up(t: Transition, event: ev.Scanned) -> None:
    if t.run.phase is Phase.HELD:
        t.set(phase=Phase.TRIAGE, pending={})
        assign_slots(t)


def test_no_ranks_are_started_beyond_the_budget_whatever_is_decided() -> None:
    p = Broken(ev.Scanned, then(ev.Scanned, never_give_up)).to(Phase.RUNNING)
    for _ in range(3):
        p.take(ev.HangDetected, last_step=1, last_at=p.now, limit_s=300.0)
        p.recover_to_first_step()
    began = len(p.starts)
    p.take(ev.HangDetected, last_step=1, last_at=p.now, limit_s=300.0)
    for _ in range(8):
        p.finish_stop_and_scan()
        p.start()
        assert p.phase is Phase.STARTING and p.refused == {6}
        p.expire_deadline()
    assert len(p.starts) == began and p.rebuilt() == p.run


def edit_starts(**changes: Any) -> Handler:
    def edit(t: Transition, event: Any) -> None:
        t.actions = [replace(a, **changes) if isinstance(a, act.Start) else a for a in t.actions]
        t.set(pending={**t.run.pending, **{a.key: a for a in t.actions}})

    return edit


def see_the_exclusion_only(t: Transition, event: ev.OperatorExclusionsChanged) -> None:
    t.set(operator_excluded=dict(event.operator_excluded))


def take_a_cancel_for_an_end(t: Transition, event: ev.AllocationSeen) -> None:
    allocation_seen(
        t, replace(event, state=JobState.ENDED) if event.state is JobState.CANCELLED else event
    )


def lose_the_answer(t: Transition, event: ev.Prepared) -> None:
    t.set(deadline=None, pending={})
    t.actions = []


def same_key(t: Transition, event: ev.Prepared) -> None:
    key = "a1/prepare/n2"
    if key in t.run.pending:
        t.emit(act.Collect(key=key, node="n2", attempt=1))


def discard_the_newest(t: Transition, event: ev.Scanned) -> None:
    if t.run.lineage:
        path = t.run.lineage[-1].path
        t.emit(act.Discard(key=f"discard/{path}", path=path, home=HOME))


def poll(t: Transition, event: ev.AgentLeft) -> None:
    t.emit(act.Poll(key=f"poll/{t.at}", job_id="101"))


def same_directory(t: Transition, event: ev.Scanned) -> None:
    if t.run.phase is Phase.CHECKING:
        t.update_attempt(save_dir=f"{HOME}/a0001")


def from_scratch(t: Transition, event: ev.Scanned) -> None:
    if t.run.phase is Phase.CHECKING:
        t.update_attempt(resume=None)


def unknown_is_bad(t: Transition, event: ev.HealthSeen) -> None:
    if event.status is Status.UNKNOWN:
        t.update_node(event.node, state=NodeState.UNUSABLE, reason="unknown")


def skip_the_checks(t: Transition, event: ev.KeysSent) -> None:
    t.enter_phase(Phase.STARTING, "at once", (60.0, DeadlineKind.FIRST_STEP))


def say_nothing(t: Transition, event: ev.Resumed) -> None:
    open_incident(t, Cause.WRONG_STEP)


def exit_and_recover(p: Broken) -> None:
    p.save(10)
    p.exit(0)
    p.finish_stop_and_scan()


# Which invariant it breaks, the broken handler, how far the run goes, and what then shows it.
def passes_all_the_same(t: Transition, event: ev.DeadlineExpired) -> None:
    if t.run.deadline is not None:
        t.set(deadline=None)
        EXPIRIES[event.kind].handler(t, "a while")


MUTANTS: dict[str, tuple[int, type[ev.Event], Handler, Phase, Callable[[Broken], Any]]] = {
    "unknown takes a node away": (
        2,
        ev.HealthSeen,
        then(ev.HealthSeen, unknown_is_bad),
        Phase.CHECKING,
        lambda p: p.checked("n3", Status.UNKNOWN),
    ),
    "another attempt's directory": (
        3,
        ev.Scanned,
        then(ev.Scanned, same_directory),
        Phase.RUNNING,
        exit_and_recover,
    ),
    "from scratch": (
        4,
        ev.Scanned,
        then(ev.Scanned, from_scratch),
        Phase.RUNNING,
        lambda p: (exit_and_recover(p), p.answer(act.Prepare)),
    ),
    "nobody is waited for": (
        7,
        ev.Prepared,
        lose_the_answer,
        Phase.CHECKING,
        lambda p: p.answer(act.Prepare),
    ),
    "people's exclusion is seen and ignored": (
        8,
        ev.OperatorExclusionsChanged,
        see_the_exclusion_only,
        Phase.CHECKING,
        lambda p: (
            p.take(ev.OperatorExclusionsChanged, operator_excluded={"n2": "fan"}),
            p.answer(act.Prepare),
        ),
    ),
    "a person's cancel is taken for an end": (
        8,
        ev.AllocationSeen,
        take_a_cancel_for_an_end,
        Phase.RUNNING,
        lambda p: p.seen("cancelled", "CANCELLED by 1000"),
    ),
    "a key twice": (
        9,
        ev.Prepared,
        then(ev.Prepared, same_key),
        Phase.CHECKING,
        lambda p: p.answer(act.Prepare, but="n2"),
    ),
    "every rank has slot 0": (
        10,
        ev.Prepared,
        then(ev.Prepared, edit_starts(slot=0)),
        Phase.CHECKING,
        lambda p: p.answer(act.Prepare),
    ),
    "another port": (
        10,
        ev.Prepared,
        then(ev.Prepared, edit_starts(master_port=1)),
        Phase.CHECKING,
        lambda p: p.answer(act.Prepare),
    ),
    "a poll after the end": (
        11,
        ev.AgentLeft,
        then(ev.AgentLeft, poll),
        Phase.GATHERING,
        lambda p: (p.join("n1"), p.take(ev.StopRequested, who="kim"), p.answer(act.Leave)),
    ),
    "the newest is deleted": (
        12,
        ev.Scanned,
        then(ev.Scanned, discard_the_newest),
        Phase.RUNNING,
        exit_and_recover,
    ),
    "a phase is skipped": (
        13,
        ev.KeysSent,
        then(ev.KeysSent, skip_the_checks),
        Phase.PENDING,
        lambda p: p.grant(),
    ),
    "nothing says why": (
        14,
        ev.Resumed,
        say_nothing,
        Phase.STARTING,
        lambda p: p.take(ev.Resumed, attempt=1, node="n1", step=5),
    ),
    "a deadline passes while nobody can be heard": (
        15,
        ev.DeadlineExpired,
        passes_all_the_same,
        Phase.CHECKING,
        lambda p: (
            p.take(ev.EngineIsolated, since=p.now, silent=("n1", "n2", "n3")),
            p.take(ev.DeadlineExpired, after=100, kind=DeadlineKind.PREPARE),
            p.take(ev.IsolationEnded, why="agents are heard again"),
        ),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_handler_is_noticed_and_the_run_waits_for_nothing_for_ever(name: str) -> None:
    number, kind, handler, phase, provoke = MUTANTS[name]
    p = Broken(kind, handler).to(phase)
    assert p.run.violations == ()
    provoke(p)
    assert number in p.refused, p.run.violations
    refused = {key for v in p.run.violations for key in v.refused}
    p.live()
    assert p.run.ended or p.phase is Phase.RUNNING
    assert p.rebuilt() == p.run
    if number not in (2, 7, 13, 14):  # these are about no action
        assert refused


def test_every_invariant_has_a_mutant() -> None:
    assert {1, 5, 6} | {mutant[0] for mutant in MUTANTS.values()} == {*INVARIANTS}


def test_where_nothing_else_ends_the_phase_the_run_is_held_and_says_why() -> None:
    p = Broken(ev.Prepared, lose_the_answer).to(Phase.CHECKING)
    p.answer(act.Prepare)
    assert p.run.deadline == Deadline(at=p.now + REFUSED_S, kind=DeadlineKind.REFUSED)
    p.expire_deadline()
    assert p.phase is Phase.HELD and "(invariant 7)" in p.run.reason


def test_a_refusal_is_told_once_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    p = Broken(ev.HealthSeen, then(ev.HealthSeen, stop_for_health)).to(Phase.RUNNING)
    before = p.run
    p.checked("n1", Status.WARN)
    lines = describe(before, p.events[-1], p.run)
    told = "refused: ranks of attempt 1 train, and HealthSeen ends them (invariant 1)"
    assert [line for line in lines if line.startswith(told)]
    before = p.run
    p.progress(2)
    assert not [line for line in describe(before, p.events[-1], p.run) if "invariant" in line]
    terminal.show(_page({**status(p.run, p.now), "engine": True}))
    page = " ".join(capsys.readouterr().out.split())
    assert "ranks of attempt 1 train" in page and "a fault of superv" in page
