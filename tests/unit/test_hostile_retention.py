"""Retention and quarantine where another user writes, too: nothing outside is touched.

Each attack is made for real, under another uid, with a canary outside.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from strangers import NOBODY, Canary, as_stranger, begin_as_stranger, meeting_place, needs_root

from supervisor.checkpoints import folders, retention
from supervisor.core.names import TRASH

pytestmark = needs_root
_ = meeting_place  # a fixture


@pytest.fixture
def home(meeting_place: Path) -> Path:
    """As careless as can be: whoever likes may rename what is in there."""
    home = meeting_place / "home"
    save(home, "a0001/step-10")
    save(home, "a0002/step-10")
    home.chmod(0o777)
    for attempt in home.iterdir():
        attempt.chmod(0o777)
    return home


@pytest.fixture
def canary(meeting_place: Path) -> Canary:
    return Canary(meeting_place / "outside")


def save(home: Path, name: str) -> Path:
    step = home / name
    step.mkdir(parents=True)
    for shard in range(4):
        (step / f"__{shard}_0.distcp").write_text("weights")
    (step / ".metadata").write_text("metadata")
    return step


def ask(command: str, home: Path, name: str = "a0001/step-10") -> str:
    question = {"command": command, "path": str(home / name), "home": str(home)}
    problem = retention.answer(question)["answer"]
    assert isinstance(problem, str) and "\n" not in problem
    return problem


# What a stranger did, in Python, given HOME and OUTSIDE; which command; what is said of it.
BEFORE = {
    "trash is a link": (
        "os.symlink(outside, f'{home}/a0001/.superv-trash')",
        ("discard",),
        ".superv-trash is a link",
    ),
    "trash is his": (
        "os.mkdir(f'{home}/a0001/.superv-trash'); os.chmod(f'{home}/a0001/.superv-trash', 0o777); "
        "os.symlink(f'{outside}/step-10', f'{home}/a0001/.superv-trash/step-10')",
        ("discard",),
        f".superv-trash belongs to uid {NOBODY}",
    ),
    "quarantine is a link": (
        "os.symlink(outside, f'{home}/quarantine')",
        ("quarantine",),
        "quarantine is a link",
    ),
    "quarantine/aNNNN is a link": (
        "os.mkdir(f'{home}/quarantine'); os.symlink(outside, f'{home}/quarantine/a0001')",
        ("quarantine",),
        f"quarantine belongs to uid {NOBODY}",
    ),
    "quarantine is a FIFO": (
        "os.mkfifo(f'{home}/quarantine')",
        ("quarantine",),
        f"quarantine belongs to uid {NOBODY}",
    ),
    "the attempt is a link": (
        "os.rename(f'{home}/a0001', f'{home}/x'); os.symlink(outside, f'{home}/a0001')",
        ("discard", "quarantine"),
        "a0001 is a link",
    ),
    "the attempt is his": (
        "os.rename(f'{home}/a0001', f'{home}/x'); os.mkdir(f'{home}/a0001'); "
        "os.symlink(f'{outside}/step-10', f'{home}/a0001/step-10')",
        ("discard", "quarantine"),
        f"a0001 belongs to uid {NOBODY}",
    ),
    "the checkpoint is a link": (
        "os.rename(f'{home}/a0001/step-10', f'{home}/a0001/x'); "
        "os.symlink(f'{outside}/step-10', f'{home}/a0001/step-10')",
        ("discard", "quarantine"),
        "step-10 is a link",
    ),
    "the checkpoint is his": (
        "os.rename(f'{home}/a0001/step-10', f'{home}/a0001/x'); os.mkdir(f'{home}/a0001/step-10')",
        ("discard", "quarantine"),
        f"step-10 belongs to uid {NOBODY}",
    ),
}
CASES = [(name, command) for name, (_, commands, _) in BEFORE.items() for command in commands]


@pytest.mark.parametrize(("attack", "command"), CASES, ids=[f"{c}, {n}" for n, c in CASES])
def test_what_was_put_in_the_way_is_refused_and_named(
    home: Path, canary: Canary, attack: str, command: str
) -> None:
    code, _, said = BEFORE[attack]
    as_stranger(f"home, outside = sys.argv[1:]\n{code}", home, canary.place)
    problem = ask(command, home)
    assert said in problem and "not touched" in problem
    assert canary.lives()
    assert (home / "a0002/step-10/.metadata").exists()


def test_links_that_are_ours_are_not_followed_for_deletion_either(
    home: Path, canary: Canary
) -> None:
    (home / "quarantine").symlink_to(canary.place)
    (home / "a0001" / TRASH).symlink_to(canary.place)
    for command in ("discard", "quarantine"):
        assert "is a link: not touched" in ask(command, home)
    assert canary.lives()


def test_a_home_of_another_user_is_refused(home: Path) -> None:
    os.chown(home, NOBODY, NOBODY)
    for command in ("discard", "quarantine"):
        assert f"home belongs to uid {NOBODY}, neither to you nor to root" in ask(command, home)
    home_question = retention.answer({"command": "home", "path": str(home)})
    assert f"belongs to uid {NOBODY}" in home_question["answer"][0]


def test_a_home_that_all_can_write_to_is_told_before_a_run(home: Path, meeting_place: Path) -> None:
    told = retention.answer({"command": "home", "path": str(home)})["answer"][0]
    assert told.startswith(f"{home} can be written by every user")
    home.chmod(0o755)
    assert retention.answer({"command": "home", "path": str(home)})["answer"] == ["", 3]
    meeting_place.chmod(0o1777)  # as /tmp is: nobody else can rename what we make there
    assert retention.answer({"command": "home", "path": f"{meeting_place}/new"})["answer"][0] == ""


def test_everything_that_lies_in_a_checkpoint_goes_and_nothing_else(
    home: Path, canary: Canary
) -> None:
    step = home / "a0001/step-10"
    (step / "deep/er").mkdir(parents=True)
    (step / "deep/er/link").symlink_to(canary.place)
    (step / "link").symlink_to(canary.place / "precious")
    os.link(canary.place / "precious", step / "hard")
    os.mkfifo(step / "fifo")
    os.mknod(step / "device", 0o600 | 0o020000, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(f"{step}/socket")
    for name in (b"\xff\xfe", b"\x1b[2J", b"new\nline", b"n" * 255, b"-rf", b"\xed\xa0\x80"):
        Path(os.fsdecode(bytes(step) + b"/" + name)).write_text("")
    (step / "deep").chmod(0o500)
    step.chmod(0o777)
    as_stranger("os.mkdir(sys.argv[1] + '/his')", step)
    assert ask("discard", home) == ""
    assert os.listdir(home / "a0001") == []
    assert canary.lives() and os.stat(canary.place / "precious").st_nlink == 1


def test_what_is_a_strangers_below_a_checkpoint_is_left_and_named(
    home: Path, canary: Canary
) -> None:
    """He may hold it open, and move it to where deleting in it is another matter."""
    step = home / "a0001/step-10"
    step.chmod(0o777)
    make = "os.makedirs(sys.argv[1] + '/his/own'); os.symlink(sys.argv[2], sys.argv[1] + '/his/l')"
    as_stranger(make, step, canary.place)
    for _ in range(2):  # and again
        assert f"step-10/his belongs to uid {NOBODY}: not touched" in ask("discard", home)
    left = home / "a0001" / TRASH / "step-10"
    assert os.listdir(left) == ["his"] and left.stat().st_mode & 0o777 == 0o700
    assert canary.lives()


def test_folders_within_folders_have_an_end(home: Path, canary: Canary) -> None:
    deep = home / "a0001/step-10"
    for _ in range(folders.MAX_DEPTH + 10):
        deep /= "d"
        deep.mkdir()
    assert "folders within each other" in ask("discard", home)
    assert canary.lives()


def test_many_entries_go(home: Path) -> None:
    for number in range(20_000):
        os.close(os.open(f"{home}/a0001/step-10/{number}", os.O_CREAT, 0o600))
    assert ask("discard", home) == ""
    assert os.listdir(home / "a0001") == []


MOUNTED = """
import ctypes, os, sys
from supervisor.checkpoints import retention
home, outside = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0 and libc.mount(b"none", b"/", None, 1 << 18 | 1 << 14, None) == 0
def bind(what, where):
    os.makedirs(where, exist_ok=True)
    assert libc.mount(what.encode(), where.encode(), None, 4096, None) == 0, ctypes.get_errno()
bind(outside, f"{home}/a0001/step-10/m")
bind(f"{outside}/step-10", f"{home}/a0002/step-10")
for name in ("a0001", "a0002"):
    ask = {"command": "discard", "path": f"{home}/{name}/step-10", "home": home}
    print(retention.answer(ask)["answer"])
"""


def test_mounts_are_not_crossed(home: Path, canary: Canary) -> None:
    """Bind mounts of the same device: its number does not tell them."""
    words = [sys.executable, "-c", MOUNTED, str(home), str(canary.place)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    below, itself = done.stdout.splitlines()
    assert "/step-10/m: Device or resource busy" in below or "m is a mount" in below
    assert itself.endswith("a0002/step-10 is a mount: not touched")
    assert canary.lives()


RACE = """
home, outside, until = sys.argv[1], sys.argv[2], float(sys.argv[3])
import time, itertools
links = [f"{home}/a0001/l{n}" for n in range(3)]
def attempt(do, *args, **more):
    try: do(*args, **more)
    except OSError: pass
for n in itertools.count():
    if n % 64 == 0 and time.monotonic() > until: break
    for name, target in (("step-10", f"{outside}/step-10"), (".superv-trash", outside)):
        attempt(os.symlink, target, f"{home}/a0001/link")
        attempt(os.rename, f"{home}/a0001/{name}", f"{home}/a0001/away-{name}")
        attempt(os.rename, f"{home}/a0001/link", f"{home}/a0001/{name}")
        attempt(os.unlink, f"{home}/a0001/{name}")
        attempt(os.rename, f"{home}/a0001/away-{name}", f"{home}/a0001/{name}")
    attempt(os.symlink, outside, f"{home}/quarantine")
    attempt(os.unlink, f"{home}/quarantine")
    attempt(os.rename, f"{home}/a0001", f"{home}/away")
    attempt(os.symlink, outside, f"{home}/a0001")
    attempt(os.unlink, f"{home}/a0001")
    attempt(os.rename, f"{home}/away", f"{home}/a0001")
    attempt(os.symlink, outside, f"{home}/a0001/.superv-trash/step-10")
    attempt(os.symlink, outside, f"{home}/a0001/step-10/sub/link")
"""


def test_a_stranger_who_renames_and_links_all_the_while_changes_nothing_outside(
    home: Path, canary: Canary
) -> None:
    for_s = 4.0
    until = time.monotonic() + for_s
    racers = [begin_as_stranger(RACE, home, canary.place, until) for _ in range(2)]
    stop = threading.Event()

    attempt = os.open(home / "a0001", os.O_PATH)

    def save_again() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            step = save(canary.place.parent / "made", f"{number}")  # where no stranger can be
            (step / "sub").mkdir()
            for folder in (step, step / "sub"):
                folder.chmod(0o777)
            while not stop.is_set():
                try:
                    os.rename(step, "step-10", dst_dir_fd=attempt)
                    break
                except OSError:
                    time.sleep(0.0005)

    saver = threading.Thread(target=save_again)
    saver.start()
    asked, problems = 0, set()
    try:
        while time.monotonic() < until:
            for command in ("discard", "quarantine"):
                problems.add(ask(command, home).partition(":")[0].rpartition("/")[2])
                asked += 1
    finally:
        stop.set()
        saver.join()
        os.close(attempt)
        codes = [racer.wait(timeout=30) for racer in racers]
    assert canary.lives()
    assert asked > 20 and len(problems) > 1, "the race was none"
    assert codes == [0, 0]
