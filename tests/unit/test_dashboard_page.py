"""The page of `superv watch`: everything on it at 80x24 and 200x50, nothing that does not fit."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from supervisor.cli.dashboard_page import Look, list_page, run_page

NOW = 1_700_000_000.0
DOCS = Path(__file__).parents[2] / "docs"


def run(**more: Any) -> dict[str, Any]:
    """A run of 60 nodes and 3 spares that has lost a node, and waits for the first step."""
    names = [f"gpu{n:03}" for n in range(1, 61)]
    slots = [{"slot": i, "node": n, "state": "ready", "reason": ""} for i, n in enumerate(names)]
    slots[16] |= {"node": "gpu061"}
    slots[41] |= {"state": "suspect", "reason": "no heartbeat since 2.7 s"}
    incident = {
        "cause": "node-lost",
        "culprits": ["gpu017"],
        "remedy": "gpu061 takes slot 16; resume from step 11500",
        "confirmed": NOW - 75,
        "suspected": NOW - 78,
        "fault": None,
        "first_step": None,
        "steps_lost": None,
    }
    older = incident | {
        "cause": "rank-exit",
        "culprits": ["gpu033"],
        "remedy": "gpu062 takes slot 32; resume from step 8000",
        "confirmed": NOW - 90_000,
        "suspected": NOW - 90_004,
        "first_step": NOW - 89_958,
        "steps_lost": 112,
    }
    return {
        "run": "moe-100b",
        "name": "moe-100b",
        "run_id": "5f2c9a1b7d34",
        "phase": "starting",
        "since": NOW - 61,
        "now": NOW,
        "reason": "attempt 3 from step 11500",
        "engine": True,
        "attempt": 3,
        "step": 11612,
        "step_at": NOW - 81,
        "loss": 2.8125,
        "steps_per_s": 0.39,
        "target_step": 200_000,
        "left_s": 483_000.0,
        "attention": [
            {
                "what": "suspect",
                "since": NOW - 130,
                "text": "gpu042: no heartbeat, and no second witness",
                "fix": "look at the node and superv's agent on it; its ranks may go on",
            }
        ],
        "waits_for": {
            "what": "the first step of attempt 3",
            "until": NOW + 1739,
            "then": "the attempt is stopped",
        },
        "last_checkpoint": {"step": 11500, "verified_at": NOW - 63},
        "allocations": [
            {"job_id": "4711", "state": "granted", "raw": "RUNNING", "nodes": names, "reason": ""}
        ],
        "slots": slots,
        "rank_phase_nodes": {"load": names[:57], "build": names[57:]},
        "spares": ["gpu063"],
        "unusable": [
            {"node": "gpu017", "state": "lost", "reason": "silence, and Slurm says DOWN"},
            {"node": "gpu042", "state": "suspect", "reason": "no heartbeat since 2.7 s"},
        ],
        "excluded": [{"node": "gpu033", "reason": "rank-exit: Xid 79 on GPU 3"}],
        "health": [
            *({"node": name, "status": "OK"} for name in names[:58]),
            *({"node": name, "status": "WARN"} for name in names[58:]),
        ],
        "incidents": [older, incident],
        **more,
    }


LOG = [
    {"at": f"00:13:{second:02}", "text": text}
    for second, text in enumerate(
        (
            "gpu017 suspected: silent for 2.7 s",
            "gpu016 probed gpu017: unreachable",
            "job 4711 is RUNNING on 63 nodes",
            "stopping: node-lost on gpu017",
            "triage: ranks are gone",
            "checkpoint of step 11500 verified: /shared/moe-100b/checkpoint/a0002/step-11500",
            "starting: attempt 3 from step 11500",
        )
    )
]
SIZES = [(80, 24), (200, 50), (100, 30), (40, 8), (139, 40), (140, 12)]


def page(columns: int, rows: int, told: dict[str, Any], scroll: int = 0) -> list[str]:
    return run_page(told, LOG, NOW, Look(columns=columns, rows=rows, scroll=scroll))


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_every_page_has_the_size_of_the_screen(columns: int, rows: int) -> None:
    for told in (run(), run(slots=[], spares=[], attention=[], incidents=[], waits_for=None)):
        for scroll in (0, 5, 1000):
            lines = page(columns, rows, told, scroll)
            assert len(lines) == rows
            assert max(map(cell_len, lines)) <= columns


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
def test_what_matters_is_there(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    first = page(*size, run())
    told = "\n".join([*first, *page(*size, run(), scroll=1000)])
    for words in (
        "moe-100b (5f2c9a)  starting for 1 min 1 s, attempt 3",
        "gpu042: no heartbeat, and no second witness",
        "the first step of attempt 3 (for 28 min 59 s more",
        "step 11612   loss 2.81",
        "slot 0     .......... .......... .......... .......... .s........ ..........",
        "s suspect",
        "59  gpu[001-016,018-041,043-061]",
        "load (57 nodes), build: gpu[058-060]",
        "1  gpu063",
        "lost       gpu017: silence, and Slurm says DOWN",
        "excluded   gpu033: rank-exit: Xid 79 on GPU 3",
        "node-lost, gpu017: gpu061 takes slot 16",
    ):
        assert words in told, f"{words}\n{told}"
    assert "node-lost, gpu017" in "\n".join(first) or "more lines below" in first[-1]


def test_ten_thousand_slots_are_scrolled_and_letters_say_what_colours_say() -> None:
    slots = [{"slot": i, "node": f"n{i}", "state": "ready", "reason": ""} for i in range(10_000)]
    slots[9_999] |= {"node": None, "state": None}
    lines = page(80, 24, run(slots=slots, rank_phase_nodes={}))
    assert lines[-1].endswith("more lines below")
    rest = page(80, 24, run(slots=slots, rank_phase_nodes={}), scroll=160)
    assert any("_ waits for a node" in line for line in rest)


def test_a_run_that_cannot_be_read_says_why_and_what_to_do() -> None:
    told = {"run": "x", "name": "x", "phase": None, "problem": "journal: gone", "fix": "do this"}
    assert "journal: gone; do this" in "\n".join(page(80, 24, told))
    rows = list_page([told, run()], NOW, Look(chosen=1))
    assert "can't be read" in rows[2] and rows[3].startswith("▶  moe-100b  5f2c9a  starting")


def test_what_a_rank_printed_cannot_steer_the_screen() -> None:
    told = run(reason="\x1b]0;owned\x07\x1b[2J")
    lines = run_page(told, [{"at": "1", "text": "\x1b[2Jx\ny"}], NOW, Look())
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
def test_the_pages_in_the_docs_are_what_it_shows(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """UPDATE_GOLDEN=1 writes them."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    columns, rows = size
    shown = "".join(f"{line.rstrip()}\n" for line in page(columns, rows, run()))
    there = DOCS / f"watch-{columns}x{rows}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        there.write_text(shown)
    assert there.read_text() == shown
    if size == (80, 24):
        assert f"```\n{shown}```" in (DOCS / "watch.md").read_text()
