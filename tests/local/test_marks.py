"""Two runs never share a checkpoint directory: each leaves its mark, and another one is refused."""

from __future__ import annotations

import json
import os

import pytest
from home import RunHome, until

from supervisor.checkpoints.mark import NAME


def test_a_second_run_is_refused_whatever_it_is_called(home: RunHome) -> None:
    home.launched()
    home.at_step(15)
    kept = home.path / "checkpoint"
    told = json.loads((kept / NAME).read_text())
    assert told["run"] == "ring" and told["run_id"] == home.status()["run_id"]
    (home.path / "alias").symlink_to(kept)
    (home.path / "sub").mkdir()
    newest = max((kept / "a0001").iterdir(), key=lambda p: int(p.name[5:]))
    spellings = {"other": kept, "link": home.path / "alias", "dots": "sub/../checkpoint"}
    for name, spelling in spellings.items():
        job = home.job(name=name, checkpoints={"dir": str(spelling)})
        said = home.superv("launch", "--detach", str(job), "--from", str(newest), rc=2)
        assert "is that of run ring" in said and f"/{NAME}" in said, said
        assert not (home.run_dir.parent / name).exists(), "nothing is left of it"
    site = (home.path / "site.yaml").read_text()
    (home.path / "other.yaml").write_text(site.replace(f"{home.path}/state", f"{home.path}/s2"))
    home.env["SUPERV_SITE"] = str(home.path / "other.yaml")
    said = home.superv("launch", "--detach", str(home.job()), "--from", str(newest), rc=2)
    assert "is that of run ring" in said
    home.env["SUPERV_SITE"] = str(home.path / "site.yaml")
    home.superv("stop", "ring")
    until(lambda: not home.processes(), "the end of all processes")
    assert not (kept / NAME).exists(), "a run that has ended gives it back"
    home.superv("resume", "ring", "--detach")
    assert home.at_step(12, attempt=2) and (kept / NAME).exists()


@pytest.mark.parametrize(
    "whose", ["an ended run", pytest.param("a machine that is gone", marks=pytest.mark.soak)]
)
def test_a_mark_that_was_left(home: RunHome, whose: str) -> None:
    home.launched()
    home.superv("stop", "ring")
    until(lambda: not home.processes(), "the end of all processes")
    left = {"run": "ring", "run_id": home.status()["run_id"], "folder": str(home.run_dir)}
    left["host"] = os.uname().nodename if whose == "an ended run" else "gone"
    mark = home.path / "checkpoint" / NAME
    mark.write_text(json.dumps(left))
    job = home.job(name="next")
    if whose != "an ended run":
        said = home.superv("launch", "--detach", str(job), "--from", "scratch", rc=2)
        assert f"remove {mark}" in said
        mark.unlink()
    home.superv("launch", "--detach", str(job), "--from", "scratch")
    assert json.loads(mark.read_text())["run"] == "next"
    home.superv("stop", "next", "--now")
    until(lambda: not home.processes(), "the end of all processes")
    assert not mark.exists()


def test_what_is_no_mark_is_refused_too(home: RunHome) -> None:
    (home.path / "checkpoint").mkdir()
    (home.path / "checkpoint" / NAME).write_bytes(b"\x1b[2J\xff")
    said = home.superv("launch", "--detach", str(home.job()), rc=2)
    assert "is that of run ?" in said and "\x1b" not in said
