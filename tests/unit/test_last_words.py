"""What a rank said when it ended, and whose end stands first."""

from __future__ import annotations

import pytest
from scenario import Scenario

from supervisor import signatures
from supervisor.core import actions as act
from supervisor.core.last_words import is_cascade, last_words, same_words
from supervisor.core.types import Cause, Phase, RankExit
from supervisor.signatures import LogKind, Role

SIGNATURES = [one for one in signatures.load().all if one.log is LogKind.JOB]
CASCADES = [(one.id, line) for one in SIGNATURES if one.role is Role.CASCADE for line in one.match]
CAUSES = [(one.id, line) for one in SIGNATURES if one.role is Role.CAUSE for line in one.match]


@pytest.mark.parametrize(("name", "line"), CASCADES)
def test_what_signatures_call_a_consequence_is_one_here(name: str, line: str) -> None:
    assert is_cascade(line), name


@pytest.mark.parametrize(("name", "line"), CAUSES)
def test_what_signatures_call_a_cause_is_no_consequence_here(name: str, line: str) -> None:
    assert not is_cascade(line), name


TRACEBACK = (
    "step: 7 loss: 2.1",
    "Traceback (most recent call last):",
    '  File "train.py", line 3, in <module>',
    "    import titan_gpu",
)
MISSING = "ImportError: No module named titan_gpu"
WORDS = [
    ((*TRACEBACK, MISSING), MISSING),
    ((*TRACEBACK, f"[rank3]: {MISSING}", "[rank3]: closing the logger"), MISSING),
    ((MISSING, "ConnectionResetError: [Errno 104] Connection reset by peer"), MISSING),
    (
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", "terminate called after throwing"),
        "torch.OutOfMemoryError: CUDA out of memory. Tried",
    ),
    (("bash: line 1: python4: command not found",), "bash: line 1: python4: command not found"),
    (("step: 7 loss: 2.1", "step: 8 loss: 2.0"), ""),
    (("step 5, 0 errors so far",), ""),
    (("[Errno 104] Connection reset by peer",), "[Errno 104] Connection reset by peer"),
    ((), ""),
]


@pytest.mark.parametrize(("tail", "words"), WORDS)
def test_the_line_that_says_why(tail: tuple[str, ...], words: str) -> None:
    assert last_words(tail) == words


def test_numbers_do_not_make_another_message() -> None:
    assert same_words("Error: port 29501 at 0x7ffe", "Error: port 29502 at 0x7abc")
    assert not same_words("", "")


ENDS = [
    ({"code": 1, "tail": (MISSING,)}, f"rank 3 on n1: {MISSING} (exit code 1)"),
    ({"code": None, "signal": 9, "tail": ("step: 8",)}, "rank 3 on n1 was ended by SIGKILL"),
    ({"code": None, "signal": 6, "tail": ("Fatal: x",)}, "rank 3 on n1: Fatal: x (SIGABRT)"),
    ({"code": 3, "tail": ("step: 8",)}, "rank 3 on n1 exited with code 3"),
    (
        {"code": 3, "tail": ("licence?",)},
        'rank 3 on n1 exited with code 3; it said last "licence?"',
    ),
]


@pytest.mark.parametrize(("end", "text"), ENDS)
def test_an_end_in_words(end: dict[str, object], text: str) -> None:
    fields = {"node": "n1", "rank": 3, "at": 1.0, "signal": None, **end}
    assert RankExit(**fields).text() == text  # type: ignore[arg-type]


RESET = ("ConnectionResetError: [Errno 104] Connection reset by peer",)


def judged(p: Scenario) -> str:
    p.finish_stop_and_scan()
    assert p.incident.verdict is not None
    return p.incident.verdict.why


def test_who_only_lost_a_peer_does_not_stand_first() -> None:
    p = Scenario().to(Phase.RUNNING)
    p.exit(0, tail=RESET)
    p.exit(1, code=None, signal=9)
    assert judged(p).startswith("rank 1 on n2 was ended by SIGKILL")
    assert p.incident.evidence[0].text == "rank 1 on n2 was ended by SIGKILL"


def test_a_node_that_is_lost_explains_that_peers_are_gone() -> None:
    p = Scenario().to(Phase.RUNNING)
    p.exit(0, tail=RESET)
    p.silent("n2")
    p.probed("n2", "unreachable")
    p.answer(act.Stop, but="n2")
    p.answer(act.Scan)
    verdict = p.incident.verdict
    assert verdict is not None and (verdict.cause, verdict.culprits) == (Cause.NODE_LOST, ("n2",))


def test_peers_that_are_gone_name_nobody_where_nothing_else_was_seen() -> None:
    p = Scenario().to(Phase.RUNNING)
    for _ in range(2):
        p.exit(0, tail=RESET)
        assert "what began it was not seen" in judged(p)
        assert p.incident.verdict is not None and p.incident.verdict.culprits == ()
        p.start()
        p.first_step()


def test_one_error_on_two_nodes_is_the_codes() -> None:
    p = Scenario(restarts_without_progress=2).to(Phase.STARTING)
    for rank in (0, 1, 1):
        p.exit(rank, tail=(MISSING,))
        p.finish_stop_and_scan()
        if p.phase is Phase.CHECKING:
            p.start()
    assert p.phase is Phase.HELD and not p.run.excluded
    assert p.run.reason.startswith(f"{MISSING}, on every attempt and on 2 nodes (n1, n2)")
