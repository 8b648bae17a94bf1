"""TorchTitan with its hook in containers of a stand-in (tests/local/container_runtime.py)."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from test_torchtitan import Titan, titan  # noqa: F401

from supervisor.core.container import Container, Mount

STAND_IN = Path(__file__).resolve().parents[1] / "local/container_runtime.py"
pytestmark = [pytest.mark.titan, pytest.mark.soak]


@pytest.fixture
def version() -> str:
    return "0.3.0"


@pytest.mark.parametrize("runtime", ["apptainer", "enroot"])
@pytest.mark.parametrize("start", ["warm", "cold"])
def test_the_hook_is_heard_and_training_resumes(
    titan: Titan,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
    start: str,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("a mount namespace needs root")
    for name in ("bin", "image"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin" / runtime).symlink_to(STAND_IN)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    titan.save.mkdir()
    venv = Path(titan.job.python).parents[1]  # the trainer's own; an image would have it
    seen = [tmp_path, venv, venv.resolve(), STAND_IN.parents[2], Path(titan.job.entry[0]).parent]
    mounts = tuple(Mount(path=str(path), to=str(path)) for path in dict.fromkeys(seen))
    container = Container(
        runtime=runtime, image=str(tmp_path / "image"), mounts=mounts, workdir=str(tmp_path)
    )
    titan.job = msgspec.structs.replace(titan.job, container=container)

    async def scenario() -> None:
        if start == "warm":
            titan.preload()
        why, before, ends, log = await titan.attempt(1, until=8, kill_at=7)
        assert bool(why) == (start == "cold") and [e.signal for e in ends] == [9, 9], log[-2000:]
        why, after, ends, log = await titan.attempt(2, until=7, resume=5)
        assert bool(why) == (start == "cold") and [e.code for e in ends] == [0, 0], log[-2000:]
        state = titan.states.state(1)
        assert state is not None and (state.phase, state.step, state.resumed) == ("done", 7, 5)
        assert state.trouble == ""
        assert after[6] == before[6]

    titan.play(scenario)
