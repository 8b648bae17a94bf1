"""Several launches of one name at one moment: one wins, the others say so and leave nothing."""

from __future__ import annotations

import subprocess

import pytest
from home import RunHome, until


@pytest.mark.parametrize("there", ["nothing", pytest.param("an ended run", marks=pytest.mark.soak)])
def test_one_of_several_launches_wins(home: RunHome, there: str) -> None:
    job = home.job("--steps", "400")
    more: tuple[str, ...] = ()
    if there == "an ended run":
        home.superv("launch", str(home.job("--steps", "12")))
        until(lambda: not home.processes(), "its end")
        job, more = home.job("--steps", "400"), ("--from", "scratch")
    argv = home.argv("launch", "--detach", str(job), *more)
    children = [
        subprocess.Popen(argv, env=home.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(5)
    ]
    told = [(child.wait(timeout=120), child.communicate()[0].decode()) for child in children]
    won = [text for code, text in told if code == 0 and "is there already" not in text]
    assert len(won) == 1, told
    for code, text in told:
        if text != won[0]:
            late = "is there already" in text or "is alive" in text
            assert late or (code == 2 and f"launched at this moment, from {job}" in text), text
    home.at_step(3)
    runs = sorted(path.name for path in home.run_dir.parent.iterdir())
    assert [name for name in runs if "~" not in name] == ["ring"], runs
    assert len(runs) == 1 + (there == "an ended run")
    assert len(home.processes(words="supervisor.engine.process")) == 1
    agents = home.processes(words="supervisor.agent")
    assert len({argv for argv in agents.values() if "superv-agent" not in argv}) == 1
    assert len(home.processes(words="ring.py")) == 4
