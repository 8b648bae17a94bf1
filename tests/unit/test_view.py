"""The panel of a living run: 60 nodes in 100 columns, bad ones by name, nothing that steers."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from supervisor.cli.view import panel
from supervisor.cli.watch import history
from supervisor.core.rhythm import RATE_REPORTS, StepRate
from supervisor.host.terminal import duration, printable

NOW = 1_700_000_000.0


def status(**more: Any) -> dict[str, Any]:
    """A run of 60 nodes and 3 spares that trains well."""
    nodes = [f"gpu{n:03}" for n in range(1, 61)]
    return {
        "name": "moe-100b",
        "phase": "running",
        "since": NOW - 7300,
        "now": NOW,
        "reason": "attempt 3 from step 1200",
        "step": 1234,
        "loss": 3.25,
        "step_at": NOW - 2.5,
        "attempt": 3,
        "steps_per_s": 23.45 / 60,
        "target_step": None,
        "left_s": None,
        "waits_for": None,
        "slots": [{"slot": i, "node": n, "state": "ready"} for i, n in enumerate(nodes)],
        "spares": ["gpu061", "gpu062", "gpu063"],
        "unusable": [],
        "excluded": [],
        "incidents": [],
        "last_checkpoint": {
            "step": 1200,
            "path": "/shared/moe/a0003/step-1200",
            "verified_at": NOW - 75,
        },
        **more,
    }


def shown(
    told: dict[str, Any], *, engine_silence_s: float = 0.0, width: int = 100, **how: Any
) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, **how)
    console.print(panel(told, engine_silence_s))
    return out.getvalue()


def test_a_healthy_run_is_told_in_a_few_lines() -> None:
    lines = [line.rstrip() for line in shown(status()).splitlines()]
    assert lines == [
        "run         moe-100b  running for 2 h 1 min: attempt 3 from step 1200",
        "training    step 1234   loss 3.25   23.4 steps/min   last step 2.5 s ago",
        "checkpoint  step 1200, verified 1 min 15 s ago; /shared/moe/a0003/step-1200",
        "active       60  gpu[001-060]",
        "spare         3  gpu[061-063]",
        "            Ctrl-C detaches; the run goes on",
    ]


def test_bad_nodes_are_listed_one_by_one_with_slot_and_reason() -> None:
    bad = [
        {"node": "gpu007", "state": "suspect", "since": NOW, "reason": "no heartbeat since 2.7 s"}
    ]
    gone = [{"node": "gpu099", "since": NOW, "reason": "node-lost: silence, and a second witness"}]
    told = shown(status(unusable=bad, excluded=gone, spares=[]))
    assert "active       59  gpu[001-006,008-060]" in told
    assert "spare       none left" in told
    assert "suspect     gpu007, slot 6, since" in told
    assert "no heartbeat since 2.7 s" in told
    assert "excluded    gpu099, since" in told


def test_many_bad_nodes_and_long_names_fit() -> None:
    nodes = [f"ip-10-{a}-{b * 17 % 251}-7.eu.compute.internal" for a in range(6) for b in range(10)]
    slots = [{"slot": i, "node": n, "state": "ready"} for i, n in enumerate(nodes)]
    bad = [
        {"node": n, "state": "lost", "since": NOW, "reason": "unreachable " * 20}
        for n in nodes[:30]
    ]
    told = shown(status(slots=slots, unusable=bad))
    assert max(len(line) for line in told.splitlines()) <= 100
    assert told.count("lost  ") == 8
    assert "and         " in told


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    told = shown(status(reason="x" * 300), width=width)
    assert max(len(line) for line in told.splitlines()) <= min(width, 100)


def test_an_incident_under_way_says_why_and_what_is_done() -> None:
    incident = {
        "cause": "node-lost",
        "culprits": ["gpu007"],
        "why": "silence, and a second witness",
        "remedy": "gpu007 excluded; a spare takes the slot",
        "suspected": NOW - 3,
        "confirmed": NOW - 1,
        "first_step": None,
        "steps_lost": None,
        "evidence": [{"text": "no step since step 370, 3.0 s ago"}],
    }
    told = shown(status(phase="stopping", incidents=[incident]))
    for words in ("node-lost, gpu007: silence", "no step since step 370", "remedy      gpu007 exc"):
        assert words in told
    over = shown(status(incidents=[{**incident, "first_step": NOW, "steps_lost": 34}]))
    assert "training again after 3.0 s, 34 steps lost" in over
    assert "no step since" not in over


def test_ages_go_on_while_the_engine_is_silent() -> None:
    told = shown(status(), engine_silence_s=7.5)
    assert "last step 10.0 s ago" in told
    assert "engine      has not answered for 7.5 s; the ranks go on without it" in told
    assert "engine" not in shown(status(), engine_silence_s=1.5)


def test_before_the_first_step() -> None:
    told = shown(status(step=None, loss=None, step_at=None, last_checkpoint=None, slots=[]))
    assert "no step yet" in told
    assert "none verified yet: a restart begins at step 0" in told


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = shown(status(), force_terminal=True, color_system="standard")
    assert "\x1b[1;32m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    plain = shown(status(), force_terminal=True, color_system="standard")
    assert not any(f"{code}m" in plain for code in range(30, 48))


def test_what_a_rank_printed_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\x07\u202ec") == "a·[2Jb···c"
    assert "\x1b" not in shown(status(reason="\x1b]0;owned\x07"))


def test_a_rate_is_over_the_last_minute_or_so_many_reports() -> None:
    fast, slow = StepRate(), StepRate()
    assert fast.per_s() is None
    for second in range(0, 121, 2):
        fast.stepped(NOW + second, (second if second < 60 else 5 * second - 240))
    assert fast.per_s() == pytest.approx(5)
    for report in range(3 * RATE_REPORTS):
        slow.stepped(NOW + 100 * report, 10 * report)
    assert slow.per_s() == pytest.approx(0.1)


def test_what_is_waited_for_and_how_long_the_rest_takes() -> None:
    awaited = {"what": "the first step of attempt 3", "until": NOW + 90, "then": "it is stopped"}
    told = shown(status(waits_for=awaited, target_step=3000, left_s=7300.0))
    assert "23.4 steps/min, 2 h 1 min left to step 3000" in told
    assert "waits for   the first step of attempt 3 (for 1 min 30 s more, then it is" in told


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (3.24, "3.2 s"),
        (75, "1 min 15 s"),
        (7200, "2 h"),
        (7300, "2 h 1 min"),
        (2e5, "2 d 7 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("level", ["", "INFO ", "WARNING "])  # "": before November 2026
def test_history_is_the_end_of_the_log(tmp_path: Any, level: str) -> None:
    log = tmp_path / "engine.log"
    lines = [f"2026-01-01T00:00:{n:02} {level}line {n}\n" for n in range(20)]
    log.write_text("Traceback\n" + "".join(lines))
    assert history(log)[0] == ("00:00:12", "line 12")
    assert len(history(log)) == 8


def test_history_goes_on_where_the_log_has_just_rotated(tmp_path: Any) -> None:
    log = tmp_path / "engine.log"
    assert history(log) == []
    (tmp_path / "engine.log.1").write_text("2026-01-01T00:00:01 INFO before\n")
    assert history(log) == [("00:00:01", "before")]
    log.write_text("2026-01-01T00:00:02 INFO after\n")
    assert history(log) == [("00:00:01", "before"), ("00:00:02", "after")]


def test_what_needs_attention_is_said_before_all_numbers() -> None:
    one = {"what": "loss", "since": NOW - 120, "text": "the loss is NaN", "fix": "go back"}
    lines = [line.rstrip() for line in shown(status(attention=[one])).splitlines()]
    assert lines[1] == "attention   the loss is NaN for 2 min; go back"
    assert lines[2].startswith("training")
