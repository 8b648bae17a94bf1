"""What ranks wrote: kept beside the journal, and waited for before nodes are given back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from scenario import Scenario, kinds

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.types import DeadlineKind, Phase
from supervisor.engine.rank_logs import SHORTEST_TAIL, TAIL, TAILS, tail_of
from supervisor.run import kept_logs
from supervisor.run.kept_logs import Index, KeptRank, Parcel


class Slow(Scenario):
    """Logs come when the test says so."""

    logs_come = False


def held() -> Slow:
    """A run that is held, whose nodes it has still."""
    p = Slow(nodes=2, spares=0, restarts_without_progress=0).to(Phase.RUNNING)
    p.exit(0, tail=("boom",))
    p.answer(act.Stop, act.Collect)
    p.answer(act.Scan)
    assert p.phase is Phase.HELD
    return p


def test_nodes_are_given_back_when_their_logs_are_there() -> None:
    p = held()
    (order,) = [a for a in p.run.pending.values() if isinstance(a, act.KeepLogs)]
    assert [(end.rank, end.tail) for end in order.first] == [(0, ("boom",))]
    assert not any(isinstance(a, act.Leave) for a in p.run.pending.values())
    assert kinds(p.reply(order)) == ["Leave", "Leave"]


def test_nodes_are_given_back_when_their_logs_do_not_come() -> None:
    p = held()
    assert p.run.deadline is not None and p.run.deadline.kind is DeadlineKind.LOGS
    assert kinds(p.expire_deadline()) == ["Leave", "Leave"]
    assert not any(isinstance(a, act.KeepLogs) for a in p.run.pending.values())


def test_a_restart_does_not_wait_for_logs() -> None:
    p = Slow(nodes=2, spares=0, backoff_s=(0.0,)).to(Phase.RUNNING)
    p.exit(0)
    p.answer(act.Stop, act.Collect)
    p.answer(act.Scan)
    assert p.phase is Phase.CHECKING
    (order,) = [a for a in p.run.pending.values() if isinstance(a, act.KeepLogs)]
    missing = ("n2: it is not connected",)
    p.take(ev.LogsKept, key=order.key, attempt=1, ranks=1, missing=missing)
    assert p.phase is Phase.CHECKING


def parcel(attempt: int, size: int = 3) -> Parcel:
    rank = KeptRank(node="n1", bytes=size)
    index = Index(attempt=attempt, at=1.0, ranks={7: rank}, first=(7,))
    return Parcel(index=index, logs={7: b"x" * size})


def test_the_newest_attempts_stay(tmp_path: Path) -> None:
    home = tmp_path / "logs"
    for number in range(1, kept_logs.ATTEMPTS + 3):
        kept_logs.write(home, parcel(number))
    kept_logs.write(home, parcel(kept_logs.ATTEMPTS + 2, 5))  # again: it takes the old one's place
    assert kept_logs.attempts(home) == list(range(3, kept_logs.ATTEMPTS + 3))
    assert kept_logs.log_of(home, kept_logs.ATTEMPTS + 2, 7).read_bytes() == b"xxxxx"
    assert sorted(path.name for path in home.iterdir())[0] == "a0003"


def test_what_is_kept_gives_way_only_to_what_was_had(tmp_path: Path) -> None:
    """An engine that asks again may find the nodes gone."""
    home = tmp_path / "logs"
    kept_logs.write(home, parcel(1))
    had = KeptRank(node="n2", bytes=2)
    gone = KeptRank(node="n1", missing="not connected")
    index = Index(attempt=1, at=2.0, ranks={7: gone, 8: had, 9: gone})
    kept_logs.write(home, Parcel(index=index, logs={7: b"!", 8: b"yy"}))
    now = kept_logs.index_of(home, 1)
    assert now.ranks == {7: KeptRank(node="n1", bytes=3), 8: had, 9: gone} and now.first == (7,)
    assert kept_logs.log_of(home, 1, 7).read_bytes() == b"xxx"
    assert kept_logs.log_of(home, 1, 8).read_bytes() == b"yy"


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk of its own needs root")
def test_the_newest_attempt_is_kept_where_the_disk_is_full(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from test_kept_logs import kept_logs, parcel; home = Path(sys.argv[2]) / 'logs';"
        "[kept_logs.write(home, parcel(n, 100_000)) for n in (1, 2, 3)];"
        "print(kept_logs.attempts(home), *(p.name for p in home.iterdir() if p.name[0] == '.'))"
    )
    small = 'mount -t tmpfs -o size=256k,mode=0700 none "$1" && shift && exec "$@"'
    argv = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", small, "sh", str(tmp_path), *argv],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("[2, 3]\n", 0), done.stderr


def test_a_resumed_run_does_not_ask_for_logs_again() -> None:
    p = held()
    p.reply(next(a for a in p.run.pending.values() if isinstance(a, act.KeepLogs)))
    p.answer(act.Leave, act.Cancel)
    p.seen("ended", "COMPLETED")
    p.take(ev.ResumeRequested, who="ann", spec=p.run.spec)
    assert p.phase is not Phase.HELD
    assert not any(isinstance(a, act.KeepLogs) for a in p.run.pending.values())


def test_all_of_it_is_bounded() -> None:
    assert tail_of(480) == TAIL
    assert tail_of(4096) * 4096 <= TAILS
    assert tail_of(84_000) == SHORTEST_TAIL
