"""A run on Slurm whose journal is gone: its ranks are adopted, and go on stepping throughout."""

from __future__ import annotations

import signal

import pytest
from runs import Runs, runs, shared_lab, started, until  # noqa: F401

pytestmark = pytest.mark.lab


def test_ranks_on_slurm_are_adopted_without_a_journal(runs: Runs) -> None:  # noqa: F811
    run = runs.launch()
    before = run.until_step(12)
    ranks, job = run.ranks(), run.job
    run.kill_engine()
    run.dir.journal.unlink()
    assert "`superv attach ring --adopt`" in runs.superv("attach", run.name, rc=2).err
    seen = runs.home / "watched"
    with started(runs.enter("attach", run.name, "--adopt"), seen) as child:
        until(lambda: child.poll() is not None or "is adopted" in seen.read_text(), "adoption")
        assert "is adopted" in seen.read_text(), seen.read_text()
        watcher = min(  # its child does the work
            process.pid
            for process in runs.lab.processes()
            if "supervisor.cli" in process.argv and "attach" in process.argv and process.uid
        )
        run.kill(watcher, signal.SIGINT)
        child.wait(20)
    after = run.until_step(before["step"] + 10)
    assert run.ranks() == ranks, "no rank was touched"
    assert (after["run_id"], after["incidents"], run.job) == (before["run_id"], [], job)
    assert after["slots"] == before["slots"]
    run.rank(3).signal(signal.SIGKILL)
    recovered = run.until_recovered()
    assert recovered["incidents"][-1]["cause"] == "rank-exit"
    run.kill_engine()
    run.dir.journal.write_bytes(b"")
    told = runs.superv("stop", run.name).out
    assert f"job {job} was cancelled and is gone" in told
    until(lambda: not run.jobs() and not run.ranks(), "the end of all ranks")
    del runs.launched[run.name]  # it has no status that could be asked for
