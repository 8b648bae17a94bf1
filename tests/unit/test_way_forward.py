"""What to type now: a command that works as typed, whatever the run stands at."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from scenario import Scenario

from supervisor.cli import cli
from supervisor.core import actions as act
from supervisor.core import attention
from supervisor.core import events as ev
from supervisor.core.attention import Attention, EngineView, Unanswered
from supervisor.core.signs_of_life import Straggler
from supervisor.core.types import Phase
from supervisor.core.way_forward import (
    _NEXT,
    STATES,
    NextStep,
    engine_gone,
    engine_mute,
    journal_lost,
    way_forward,
)

RUNBOOKS = Path(__file__).resolve().parents[2] / "docs/runbooks"
JOB = "/home/ann/my jobs/job.yaml"
OTHERS = {"squeue", "sinfo", "scontrol", "timeout", "kill"}


def works(step: NextStep) -> list[str]:
    """The command's words; superv's own are understood by superv."""
    words = shlex.split(step.command)
    assert step.why
    if words[0] == "superv":
        with cli.make_context("superv", words[1:]) as at_top:
            _, command, rest = cli.resolve_command(at_top, words[1:])
            assert command is not None
            while hasattr(command, "commands"):
                command, rest = command.commands[rest[0]], rest[1:]
            command.make_context(words[1], rest, parent=at_top)
    else:
        assert words[0] in OTHERS
    if step.runbook:
        assert (RUNBOOKS / f"{step.runbook}.md").exists()
    return words


def told(p: Scenario, seen: EngineView | None = None) -> str:
    step = way_forward(p.run, p.now, seen, JOB)
    return " ".join(works(step)) if step is not None else ""


def held(**more: object) -> Scenario:
    p = Scenario(restarts_without_progress=0, **more).to(Phase.RUNNING)  # type: ignore[arg-type]
    p.exit(0, tail=("KeyError: 'lr'",))
    p.finish_stop_and_scan()
    return p


def refused() -> Scenario:
    p = Scenario()
    key = next(iter(p.run.pending))
    p.take(ev.SubmitRefused, key=key, why="Invalid partition name specified", definite=True)
    assert p.phase is Phase.HELD
    return p


def nodes_too_few() -> Scenario:
    p = Scenario(nodes=2, spares=0).to(Phase.GATHERING)
    p.join("n1")
    p.join("n2", problems=("no memory",))
    p.expire_deadline()
    assert p.phase is Phase.HELD
    return p


def nothing_left() -> Scenario:
    p = Scenario().to(Phase.RUNNING)
    p.save(5)
    p.take(ev.Scanned, key="look", **p.scan_found())
    p.corrupt.update(c.path for c in p.disk)
    p.exit(0)
    p.finish_stop_and_scan()
    assert p.phase is Phase.HELD
    return p


def stopped() -> Scenario:
    p = Scenario().to(Phase.RUNNING)
    p.take(ev.StopRequested, who="ann")
    p.finish_stop_and_scan()
    return p


def done(**more: object) -> Scenario:
    p = Scenario(**more).to(Phase.RUNNING)  # type: ignore[arg-type]
    p.exit(0, code=0)
    p.exit(1, code=0)
    p.answer(act.Scan)
    assert p.phase is Phase.DONE
    return p


def in_the_queue() -> Scenario:
    p = Scenario()
    p.answer(act.Submit)
    p.seen("pending", "PENDING", reason="(Priority)")
    return p


def no_spare() -> Scenario:
    p = Scenario(nodes=2, spares=0, restarts_without_progress=9).to(Phase.RUNNING)
    p.lose("n2")
    p.finish_stop_and_scan()
    assert p.phase is Phase.GATHERING
    return p


RESUME = "superv resume moe"
STANDS: list[tuple[str, Callable[[], Scenario], str]] = [
    ("held by the ranks", held, f"{RESUME} --config {JOB}"),
    ("held as Slurm refuses", refused, f"{RESUME} --config {JOB}"),
    ("held without nodes", nodes_too_few, RESUME),
    ("held without checkpoints", nothing_left, "superv checkpoints list moe"),
    ("stopped", stopped, RESUME),
    ("done", done, "superv checkpoints list moe"),
    ("done, nothing saved", lambda: done(home=None), "superv logs moe"),
    ("in the queue", in_the_queue, "squeue --start -j 101"),
    ("without a spare", no_spare, "superv include moe n2"),
    ("training", lambda: Scenario().to(Phase.RUNNING), ""),
]


@pytest.mark.parametrize(("stands", "command"), [s[1:] for s in STANDS], ids=[s[0] for s in STANDS])
def test_what_to_type(stands: Callable[[], Scenario], command: str) -> None:
    assert told(stands()) == command


def test_without_an_engine_one_is_started() -> None:
    for step in (engine_gone("moe~1a"), engine_mute("moe", None), journal_lost("moe")):
        assert works(step)[:2] == ["superv", "attach"]
    assert works(engine_mute("moe", 7)) == ["kill", "-9", "7"]
    assert "'moe~1a'" in engine_gone("moe~1a").command


def test_storage_is_looked_at_with_a_deadline() -> None:
    p = Scenario(home="/my ckpt").to(Phase.TRIAGE)
    key = next(key for key, action in p.run.pending.items() if isinstance(action, act.Scan))
    seen = EngineView(waits={key: Unanswered(since=p.now, why="/my ckpt does not answer")})
    assert told(p, seen) == "timeout 10 ls -d /my ckpt"


def test_an_engine_that_is_cut_off_looks_around() -> None:
    p = Scenario().to(Phase.RUNNING)
    run = replace(p.run, isolated_since=p.now)
    step = way_forward(run, p.now)
    assert step is not None and works(step) == ["superv", "doctor"]
    assert step.runbook == "isolated"


def test_all_that_needs_attention_has_a_command_or_is_known_to_need_none() -> None:
    tags = {*re.findall(r'what="(\w+)"', Path(attention.__file__).read_text()), "storage", "slurm"}
    assert tags == _NEXT.keys()
    p = no_spare()
    late = Straggler(rank=3, node="n1", step=5, run_step=50, factor=10.0)
    seen = EngineView(stragglers=(late,), pid=17)
    for tag, then in _NEXT.items():
        one = Attention(what=tag, since=None, text="…", fix="…")
        if (step := then(p.run, one, seen)) is not None:
            works(step)
        else:
            assert tag in ("drained", "suspect")  # nothing to do; nobody is silent here


def test_every_page_about_a_state_is_named_by_something() -> None:
    source = Path(attention.__file__).with_name("way_forward.py").read_text()
    assert all(source.count(f'"{state}"') >= 2 for state in STATES)
