"""What arrives on a node, and what another user of the node can do about it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from strangers import as_stranger, meeting_place, needs_root  # noqa: F401

from supervisor.agent.mailbox import Mailbox, Mailbox01, forget_the_dead
from supervisor.channel import delivery, node_folders, wire
from supervisor.core.errors import UserError
from supervisor.host import private

KEYS = {
    "wire": wire.WIRE,
    "run_id": "r",
    "endpoint": "tcp://1",
    "server_key": "s",
    "public_key": "p",
    "secret_key": "k",
}


def put(home: Path, name: str, text: str | None = None, at: float = 0, **changes: str) -> Path:
    path = home / name
    path.touch(mode=0o600)
    path.write_text(json.dumps(KEYS | changes) if text is None else text)
    os.utime(path, (at, at))
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / f"superv-{os.getuid()}-{'a' * 20}"
    private.folder(made)
    return made


def test_a_name_that_only_the_runs_keys_tell() -> None:
    names = {delivery.nonce(s, j) for s in ("s1", "s2") for j in ("superv-a-1", "superv-a-2")}
    assert len(names) == 4
    assert delivery.nonce("s1", "superv-a-1") in names, "the same at each try"
    assert all(len(bytes.fromhex(name)) == 10 for name in names)
    assert delivery.new_name("key") != delivery.new_name("key")


def test_the_newest_delivery_counts_and_a_half_written_one_does_not(home: Path) -> None:
    mailbox = Mailbox(home)
    with pytest.raises(FileNotFoundError):
        mailbox.keys()
    put(home, "key.1", at=1, endpoint="tcp://old")
    assert mailbox.keys().endpoint == "tcp://old"
    put(home, "key.2", at=2_000_000_000, endpoint="tcp://new")
    put(home, "key.3", '{"wire":', at=2_000_000_001)
    assert mailbox.keys().endpoint == "tcp://new"
    assert mailbox.keys().endpoint == "tcp://new", "kept for an agent that comes after"
    assert {path.name for path in home.iterdir()} == {"key", "key.3"}


def test_only_half_written_ones(home: Path) -> None:
    put(home, "key.1", "{")
    with pytest.raises(UserError, match=r"key\.1: not a key file"):
        Mailbox(home).keys()


@pytest.mark.parametrize("trap", ["file", "link", "open"])
def test_a_folder_that_is_not_ours_alone(tmp_path: Path, trap: str) -> None:
    there = tmp_path / "trap"
    if trap == "file":
        there.touch()
    elif trap == "link":
        there.symlink_to(tmp_path)
    else:
        there.mkdir()
        there.chmod(0o755)
    with pytest.raises(UserError, match=r"must be a directory of mode 0700, owned by you"):
        private.folder(there)


@needs_root
def test_a_folder_of_another_user(meeting_place: Path) -> None:  # noqa: F811
    meeting_place.chmod(0o1777)
    there = meeting_place / f"superv-{os.getuid()}-{'b' * 20}"
    as_stranger("os.mkdir(sys.argv[1], 0o700)", there)
    with pytest.raises(UserError, match="owned by you"):
        private.folder(there)
    mine = meeting_place / f"superv-{os.getuid()}-{'c' * 20}"
    private.folder(mine)
    assert delivery.older(mine) == [], "another user's folder is none of ours"


def test_folders_of_the_dead_are_cleaned_and_those_of_the_living_are_not(home: Path) -> None:
    old = home.with_name(f"superv-{os.getuid()}-{'d' * 20}")
    living = home.with_name(f"superv-{os.getuid()}-{'e' * 20}")
    other = home.with_name("superv-notes")
    for folder in (old, living, other):
        (folder / "n1/code/x").mkdir(parents=True)
        for name in ("key", "key.1", "d1gest.2", "n1/job.json", "n1/agent.log", "allocation.log"):
            (folder / name).touch()
        (folder / "n1/code/x").chmod(0o500)
    env = {**os.environ, delivery.VARIABLE: str(living)}
    with subprocess.Popen([sys.executable, "-c", "input()"], env=env, stdin=-1) as child:
        assert forget_the_dead(home) == [old]
        child.communicate(b"\n")

    def left(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    assert left(old) == {"n1/agent.log", "allocation.log"}
    assert len(left(living)) == len(left(other)) == 6


def test_old_folders_go_and_those_that_are_new_or_in_use_stay(home: Path) -> None:
    def made(letter: str, age_days: float) -> Path:
        folder = home.with_name(f"superv-{os.getuid()}-{letter * 20}")
        (folder / "n1/code/x").mkdir(parents=True)
        (folder / "n1/code/x/train.py").touch()
        (folder / "n1/a0001").mkdir()
        (folder / "n1/code/x").chmod(0o500)
        at = time.time() - 86_400 * age_days
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (at, at))
        return folder

    old, new, written, locked = made("d", 31), made("e", 29), made("f", 31), made("0", 31)
    (written / "n1/a0001").touch()
    held = os.open(locked, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert node_folders.remove_old(home, time.time() - node_folders.KEPT_S) == [old]
    assert not old.exists() and all(p.exists() for p in (home, new, written, locked))
    assert not node_folders.remove(str(locked)), "an agent has it"
    os.close(held)
    assert node_folders.remove(str(locked), dry_run=True) and locked.exists()
    assert node_folders.remove(str(locked)) and not locked.exists()


@pytest.mark.parametrize("name", ["", "notes", f"superv-1{os.getuid()}-{'a' * 20}"])
def test_no_other_folder_is_removed_as_an_allocation_s(tmp_path: Path, name: str) -> None:
    (tmp_path / "x" / name).mkdir(parents=True, exist_ok=True)
    assert not node_folders.remove(str(tmp_path / "x" / name))
    assert (tmp_path / "x" / name).exists()


def test_an_allocation_of_superv_0_1_is_read_as_before(tmp_path: Path) -> None:
    path = put(tmp_path, "superv-0-abc.key")
    mailbox = Mailbox01(path)
    assert mailbox.keys().run_id == "r"
    assert mailbox.archives("d1") == [tmp_path / "superv-0-abc.d1.code"]
    mailbox.forget()
    assert not path.exists()
