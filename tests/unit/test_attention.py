"""What needs attention: what is said, from when on, and that nothing else is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scenario import Scenario

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.attention import EngineView, Unanswered, attention, save_limit
from supervisor.core.signs_of_life import Straggler
from supervisor.core.types import Checkpoint, Phase

LONGEST = 100  # columns of a page; the texts here name no long paths or reasons


def running(**more: Any) -> Scenario:
    return Scenario(nodes=2, spares=1, **more).to(Phase.RUNNING)


def said(p: Scenario, after: float = 0.0, seen: EngineView | None = None) -> dict[str, str]:
    """By tag."""
    found = attention(p.run, p.now + after, seen)
    for one in found:
        assert len(one.text) <= LONGEST and len(one.fix) <= LONGEST, one
        assert one.fix and (one.since is None or one.since <= p.now + after), one
    return {one.what: one.text for one in found}


@pytest.mark.parametrize("phase", list(Phase)[:8])
def test_a_run_that_goes_well_needs_none(phase: Phase) -> None:
    assert said(Scenario(backoff_s=(5.0,)).to(phase)) == {}


def test_the_loss() -> None:
    p = running()
    p.progress(5, loss=3.25)
    p.take(ev.Progress, attempt=1, step=6, loss_not_finite=True)
    began = p.now
    p.take(ev.Progress, attempt=1, step=7, loss_not_finite=True)
    assert said(p) == {
        "loss": "the loss is NaN or infinite; the last finite one was 3.25; "
        "saves after step 0 don't count"
    }
    assert attention(p.run, p.now)[0].since == began
    p.take(ev.Progress, attempt=1, step=8)  # a stage that prints no loss says nothing of it
    assert said(p).keys() == {"loss"}
    p.progress(9, loss=3.0)
    assert said(p) == {}


def test_a_suspect_of_minutes() -> None:
    p = running()
    p.silent("n3")
    assert said(p, 100.0) == {}
    assert said(p, 130.0) == {"suspect": "n3: no heartbeat, and no second witness"}


def test_isolation_comes_first() -> None:
    p = running()
    p.silent("n3")
    p.take(ev.EngineIsolated, since=p.now, silent=("n1", "n2"))
    assert list(said(p, 130.0)) == ["isolated", "suspect"]


def test_a_rank_that_is_missing() -> None:
    p = running()
    p.exit(0, code=0)
    assert said(p, 30.0) == {}
    total = 2 * p.run.spec.ranks_per_node
    text = f"1 of {total} ranks ended with code 0 on n1; of the others no end is known"
    assert said(p, 90.0) == {"ranks": text}


def test_ranks_that_nobody_has_seen_start() -> None:
    p = running()
    assert p.run.attempt is not None
    p.run = replace(p.run, attempt=replace(p.run.attempt, started=("n1",)))
    assert said(p, 30.0) == {}
    assert said(p, 90.0) == {"ranks": "n2 has not confirmed that its ranks are started"}


@pytest.mark.parametrize(
    ("verified", "limit"),
    [((), 3600.0), ((0,), 3600.0), ((0, 20, 40), 600.0), ((0, 900, 1800, 9000), 2700.0)],
)
def test_checkpoints_are_overdue_by_their_own_rhythm(
    verified: tuple[int, ...], limit: float
) -> None:
    p = running()
    lineage = tuple(
        Checkpoint(step=i, path=f"/c/a0001/step-{i}", attempt=1, verified_at=p.now + at)
        for i, at in enumerate(verified, start=1)
    )
    p.run = replace(p.run, lineage=lineage)
    assert save_limit(p.run) == limit
    last = max((0, *verified))
    assert said(p, last + limit - 5) == {}
    good = f"the last good one is of step {len(verified)}" if verified else "there is none yet"
    assert said(p, last + limit + 5).keys() == {"checkpoints"}
    assert said(p, last + limit + 5)["checkpoints"].endswith(good)


@pytest.mark.parametrize("what", ["storage", "slurm"])
def test_what_the_world_does_not_answer(what: str) -> None:
    if what == "slurm":
        p, kind = Scenario(), act.Submit
    else:
        p = running()
        p.exit(0)
        while p.phase is not Phase.TRIAGE:
            p.answer(act.Stop, act.Collect)
        kind = act.Scan
    (key,) = (a.key for a in p.run.pending.values() if isinstance(a, kind))
    waits = {
        key: Unanswered(since=p.now - 40, why="no answer within 30 s"),
        "answered/1": Unanswered(since=p.now, why="something else"),
    }
    found = attention(p.run, p.now, EngineView(waits=waits))
    text = "waiting, and trying again: no answer within 30 s"
    assert [(a.what, a.since, a.text) for a in found] == [(what, p.now - 40, text)]


@pytest.mark.parametrize(
    ("reason", "told"), [("Priority", 0), ("(Resources)", 0), ("PartitionDown", 1)]
)
def test_a_job_that_waits_for_more_than_its_turn(reason: str, told: int) -> None:
    p = Scenario()
    p.answer(act.Submit)
    p.seen("pending", "PENDING", reason=reason)
    assert len(said(p)) == told
    assert all(text.endswith(f"PENDING: {reason}") for text in said(p).values())


def test_a_slot_that_waits_for_a_node() -> None:
    p = Scenario(nodes=2, spares=0).to(Phase.RUNNING)
    p.lose("n2")
    p.finish_stop_and_scan()
    assert said(p) == {"nodes": "no node for slot 1: no spare is left"}
    (one,) = attention(p.run, p.now)
    assert (
        one.fix == f"repair them; `superv include {p.run.spec.name} n2` lets back in what the "
        "run excluded"
    )


def test_what_slurm_says_of_a_job_is_told_in_words_with_what_helps() -> None:
    p = Scenario()
    p.answer(act.Submit)
    told = {"means": "it is held, by you", "do": "`scontrol release 101`", "starts_at": p.now + 60}
    p.seen("pending", "PENDING", reason="JobHeldUser", **told)
    (one,) = attention(p.run, p.now)
    assert (one.text, one.fix) == (
        "job 101 is PENDING: JobHeldUser: it is held, by you",
        told["do"],
    )
    assert p.run.allocations["101"].starts_at == told["starts_at"]
    p.seen("pending", "PENDING", reason="Licenses", means="a licence is in use")
    assert said(p) == {}  # not one of the words that are known here, and the launcher knows it
    p.seen("running", nodes=("n1", "n2", "n3"))
    job = p.run.allocations["101"]
    assert (job.means, job.do, job.starts_at) == ("", "", None)


def test_agents_that_all_came_and_are_all_unusable() -> None:
    p = Scenario(nodes=2, spares=1)
    p.grant()
    p.join("n1", problems=("no room in /var/tmp",))
    assert p.run.reason.endswith("their agents are coming") and said(p) == {}
    p.join("n2", problems=("no room in /var/tmp",))  # the third one alone can't be enough
    text = "2 of 3 agents came, 0 of 2 nodes are usable: no room in /var/tmp (n[1-2])"
    assert (p.run.reason, said(p)) == (text, {"nodes": text})
    p.join("n3", problems=("another python",))
    text = "all 3 agents came, 0 of 2 nodes are usable: no room in /var/tmp (n[1-2]); "
    text += "another python (n3)"
    assert (p.run.reason, said(p)) == (text, {"nodes": text})
    p.join("n1")
    assert "1 of 2 nodes are usable" in p.run.reason
    p.join("n2")
    assert said(p) == {}


def test_an_engine_that_ends_again_and_again() -> None:
    p = running()
    for epoch in range(2, 7):
        assert ("engine" in said(p)) is (epoch > 4)
        p.take(ev.EngineStarted, epoch=epoch, host="login", endpoint=p.run.endpoint)
    assert said(p)["engine"] == "the engine was started 4 times: it ends again and again"
    assert "engine" not in said(p, after=1800)


def test_a_rank_that_is_far_behind() -> None:
    slow = Straggler(rank=5, node="n2", step=20, run_step=300, factor=15.0)
    less = Straggler(rank=1, node="n1", step=100, run_step=300, factor=3.0)
    text = "rank 5 on n2 is at step 20 where the run is at 300: 15x slower"
    assert said(running(), seen=EngineView(stragglers=(slow,))) == {"behind": text}
    both = said(running(), seen=EngineView(stragglers=(less, slow)))
    assert both == {"behind": f"{text}; so are ranks on 1 more nodes"}


def test_lines_of_which_none_is_understood() -> None:
    p = Scenario(nodes=2, spares=1).to(Phase.STARTING)
    p.take(ev.LinesUnread, attempt=1, node="n1", rank=0, line="17 done", pattern=r"(?P<step>\d+)")
    (one,) = attention(p.run, p.now)
    assert one.what == "steps" and one.text.endswith("rank 0 on n1 writes: 17 done")
    assert one.fix == r"in job.yaml, for the next launch: progress: {step: '(?P<step>\d+)'}"
    p.first_step()
    assert said(p) == {}
