"""Places that somebody empties are known by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.host.emptied import emptied, notes


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/dev/shm/runs", "RemoveIPC"),
        ("/dev/shm", "RemoveIPC"),
        ("/run/user/1000/superv", "logs out"),
        ("/var/run/user/1000", "logs out"),
        ("/run/superv", "a reboot"),
        ("/tmp/state", "a reboot"),
        ("/tmp//../tmp/./state", "a reboot"),
        ("/var/tmp/state", "cleaners"),
        ("/home/me/.local/state/superv", ""),
        ("/srv/tmp/state", ""),
        ("/tmpfs/state", ""),
        ("/dev/shmem", ""),
        ("/runs/me", ""),
    ],
)
def test_what_may_be_gone_one_day(path: str, said: str) -> None:
    why = emptied(Path(path))
    assert bool(why) is bool(said) and said in why


def test_on_nodes_an_agent_puts_back_what_cleaners_take() -> None:
    assert emptied(Path("/var/tmp"), looked_after=True) == ""
    assert "RemoveIPC" in emptied(Path("/dev/shm/x"), looked_after=True)


def test_whoever_launches_a_run_is_told_each() -> None:
    told = list(notes(Path("/tmp/s"), Path("/dev/shm"), Path("/dev/shm/c")))
    assert [note.partition(":")[0] for note in told] == ["state_dir", "node_dir", "checkpoints.dir"]
    assert all("; " in note and "set " in note for note in told)
    assert list(notes(Path("/var/lib/s"), Path("/var/tmp"), None)) == []


def test_doctor_says_so() -> None:
    from supervisor.config import Site
    from supervisor.doctor.machine import places

    said = places(Site(state_dir=Path("/dev/shm/s"), node_dir=Path("/run/user/7")), None)
    assert [(f.status, f.result.fix) for f in said] == [
        ("WARN", "the run is lost with it: set state_dir in site.yaml"),
        ("WARN", "set node_dir in site.yaml"),
    ]
    [fine] = places(Site(state_dir=Path("/var/lib/superv")), None)
    assert fine.status == "OK"
