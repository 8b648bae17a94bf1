"""`superv` where $HOME, state_dir, a folder of PATH or a file lies on a mount whose server is gone.

One mount hangs for all of these tests (hung_fuse.py): what touches it sleeps uninterruptibly.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from healthchecks.frame.check import Result, Status
from healthchecks.frame.report import Finding, Report
from supervisor.fleet.record import Fleet
from supervisor.host import announced, procfs

HUNG = Path(__file__).with_name("hung_fuse.py")
SUPERV = (sys.executable, "-m", "supervisor.cli")
SLOW = HUNG.with_name("slow_fuse.py")
LIMIT = {"SUPERV_STORAGE_TIMEOUT_S": "0.5"}
AMPLE_S = 60.0
# Starts what a line of JSON on standard input names, and answers with a line how it ended.
SERVANT = """
import json, subprocess, sys
for line in sys.stdin:
    argv, env = json.loads(line)
    done = subprocess.run(argv, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    print(json.dumps([done.returncode, done.stdout, done.stderr]), flush=True)
"""


class Dead:
    """A mount namespace in which one folder hangs."""

    def __init__(self, path: Path) -> None:
        self.folder = path / "dead"
        self.folder.mkdir()
        argv = (sys.executable, str(HUNG), str(self.folder), sys.executable, "-c", SERVANT)
        self._count = 0
        self._servant = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, argv: Sequence[str], env: Mapping[str, str]) -> tuple[int, str, str]:
        assert self._servant.stdin is not None and self._servant.stdout is not None
        try:
            print(json.dumps([argv, env]), file=self._servant.stdin, flush=True)
            line = self._servant.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            pytest.skip("this machine has no /dev/fuse, or does not let us mount")
        code, out, err = json.loads(line)
        return code, out, err

    def below(self, name: str) -> Path:
        """A path that nobody hangs at yet."""
        self._count += 1
        return self.folder / f"{name}{self._count}"

    def close(self) -> None:
        assert self._servant.stdin is not None
        assert self._servant.stdout is not None
        self._servant.stdin.close()
        self._servant.stdout.close()
        self._servant.wait(AMPLE_S)


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dead]:
    made = Dead(tmp_path_factory.mktemp("m"))
    yield made
    made.close()
    left = time.monotonic() + AMPLE_S  # the mount is gone: so is what hung in it
    while announced.find_stuck() and time.monotonic() < left:
        time.sleep(0.05)


class PersonAtHome:
    """Somebody with a home and a site, on one of which the world ends."""

    def __init__(self, dead: Dead, path: Path, **site: object) -> None:
        self.dead, self.path = dead, path
        told = {"state_dir": str(path / "state"), **site}
        (path / "site.yaml").write_text(yaml.safe_dump(told))
        self.env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(path),
            "SUPERV_SITE": str(path / "site.yaml"),
            **LIMIT,
        }

    def superv(self, *words: str, **env: str) -> tuple[int, str, str]:
        return self.dead.run((*SUPERV, *words), self.env | env)


def one_line(err: str) -> str:
    [line] = err.splitlines()
    assert line.startswith("superv: ")
    return line


def test_a_home_that_hangs_is_named_and_not_tried_again(dead: Dead, tmp_path: Path) -> None:
    person = PersonAtHome(dead, tmp_path)
    home = str(dead.below("home"))
    code, out, err = person.superv("nodes", HOME=home)
    assert (code, out) == (1, "")
    said = one_line(err)
    assert f"{home}/.config/superv/site.yaml (on {dead.folder}, fuse of hung)" in said
    assert "looking for site.yaml has hung" in said and "XDG_CONFIG_HOME" in said
    for other in (("nodes",), ("report",), ("status", "x")):
        code, _, err = person.superv(*other, HOME=home)
        assert code == 1
        assert "of an earlier superv has hung there" in one_line(err)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("nodes", 1),
        ("sweep", 4),
        pytest.param("report", 1, marks=pytest.mark.soak),
        pytest.param("include n1", 1, marks=pytest.mark.soak),
        pytest.param("preflight n1", 1, marks=pytest.mark.soak),
        *(
            pytest.param(words, 1, marks=pytest.mark.soak)
            for words in (
                "status",
                "stop r",
                "logs r",
                "attach r",
                "resume r",
                "checkpoints list r",
            )
        ),
    ],
)
def test_a_state_dir_that_hangs_costs_the_command_alone(
    dead: Dead, tmp_path: Path, command: str, code: int
) -> None:
    state = dead.below("state")
    person = PersonAtHome(dead, tmp_path, state_dir=str(state))
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'n1|main*|allocated|0/4/0/4|gpu:8|none'\n")
    (tmp_path / "sinfo").chmod(0o755)
    ended, _, err = person.superv(*command.split(), PATH=f"{tmp_path}:/usr/bin:/bin")
    assert ended == code, err
    assert str(state) in one_line(err) and "does not answer" in err


@pytest.mark.soak
def test_doctor_tells_of_a_state_dir_that_hangs_beside_all_else(dead: Dead, tmp_path: Path) -> None:
    state = dead.below("state")
    code, out, _ = PersonAtHome(dead, tmp_path, state_dir=str(state)).superv("doctor")
    assert code == 1 and str(state) in out, out


def test_a_folder_of_path_that_hangs_is_left_out_and_named(dead: Dead, tmp_path: Path) -> None:
    person = PersonAtHome(dead, tmp_path)
    folder = dead.below("bin")
    for why in ("has not answered for 0.5 s", "an earlier superv hangs there"):
        code, out, err = person.superv("status", "--json", PATH=f"{folder}:/usr/bin:/bin")
        assert (code, json.loads(out)) == (0, [])
        assert (
            f"{folder} (on {dead.folder}, fuse of hung) is left out of PATH: " in err and why in err
        )
    assert len([one for one in announced.find_stuck() if one.at.path == str(folder)]) <= 1


def test_slurm_begins_a_job_where_the_prologs_files_hang(dead: Dead, tmp_path: Path) -> None:
    site = dead.below("site.yaml")
    person = PersonAtHome(dead, tmp_path)
    for _ in range(2):
        code, _, err = person.superv("prolog", "--site", str(site))
        assert code == 0 and f"{site} (on" in err
    code, _, err = person.superv("prolog", SUPERV_STORAGE_TIMEOUT_S="soon")
    assert code == 0 and "the job may begin: SUPERV_STORAGE_TIMEOUT_S=soon" in err


def test_a_reader_of_the_output_does_not_wait_for_what_hangs(dead: Dead, tmp_path: Path) -> None:
    person = PersonAtHome(dead, tmp_path)
    output = dead.below("page.html")
    with Fleet(tmp_path / "state/fleet.db"):
        pass
    words = shlex.join([*SUPERV, "report", "--output", str(output)])
    code, out, _ = dead.run(("sh", "-c", f"{{ {words}; echo ended $?; }} 2>&1 | cat"), person.env)
    said, ended = out.splitlines()
    assert (code, ended) == (0, "ended 1") and f"{output} (on" in said


@pytest.mark.soak
def test_what_is_slow_goes_on(tmp_path: Path) -> None:
    """All of it takes longer than one call may."""
    with Fleet(tmp_path / "state/fleet.db") as fleet:
        fleet.exclude("n2", "fan", "kim", 1e9, None)
    (tmp_path / "slow").mkdir()
    told = {"state_dir": str(tmp_path / "slow")}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(told))
    env = {
        **os.environ,
        "SUPERV_SITE": str(tmp_path / "site.yaml"),
        "SUPERV_STORAGE_TIMEOUT_S": "1.5",
    }
    slow = [sys.executable, str(SLOW), str(tmp_path / "state"), str(tmp_path / "slow"), "slow=0.6"]
    began = time.monotonic()
    done = subprocess.run([*slow, *SUPERV, "nodes"], env=env, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("this machine has no /dev/fuse, or does not let us mount")
    assert done.returncode == 0 and "n2" in done.stdout, done.stderr
    assert time.monotonic() - began > 1.5  # or nothing was shown


def test_a_file_that_nobody_announced_is_not_tried_again_by_the_same_command(
    dead: Dead, tmp_path: Path
) -> None:
    """The command line is read before the command begins: it looks whether FILE is a folder."""
    person = PersonAtHome(dead, tmp_path)
    words = ("report", "--output", str(dead.below("page.html")))
    assert "has hung for" in one_line(person.superv(*words)[2])
    code, _, err = person.superv(*words)
    assert code == 1 and "of an earlier superv has hung there" in one_line(err)


def test_who_interrupts_what_hangs_need_not_wait(dead: Dead, tmp_path: Path) -> None:
    home = str(dead.below("home"))
    env = PersonAtHome(dead, tmp_path).env | {"HOME": home, "SUPERV_STORAGE_TIMEOUT_S": "3600"}
    script = f"{shlex.join([*SUPERV, 'nodes'])} & sleep 1; kill -TERM $!; wait $!; echo ended $?"
    _, out, err = dead.run(("sh", "-c", script), env)
    assert out == "ended 143\n" and f"{home}/.config" in one_line(err)


@pytest.mark.parametrize("words", [("nodes",), ("nodes", "x")])
def test_all_else_is_as_in_one_process(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Exit code and both outputs, to pipes and to files."""
    with Fleet(tmp_path / "state/fleet.db") as fleet:
        fleet.exclude("n2", "fan", "kim", 1e9, None)
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"state_dir": str(tmp_path / "state")}))
    env = {**os.environ, "SUPERV_SITE": str(tmp_path / "site.yaml")}
    bare = "import sys; from supervisor.cli import cli, main; import supervisor.cli as c\n"
    bare += "c.AT_HOME = tuple(c.COMMANDS); main()"
    one = subprocess.run([sys.executable, "-c", bare, *words], env=env, capture_output=True)
    two = subprocess.run([*SUPERV, *words], env=env, capture_output=True)
    assert (one.returncode, one.stdout, one.stderr) == (two.returncode, two.stdout, two.stderr)
    with (tmp_path / "out").open("wb") as out:
        code = subprocess.run([*SUPERV, *words], env=env, stdout=out, stderr=out).returncode
    assert (code, (tmp_path / "out").read_bytes()) == (one.returncode, one.stdout + one.stderr)


def test_a_reader_that_leaves_ends_it(tmp_path: Path) -> None:
    with Fleet(tmp_path / "state/fleet.db") as fleet:
        seen = Result(status=Status.FAIL, seen="full " * 100)
        found = (Finding(check="fs.local", result=seen),)
        fleet.record([Report(node=f"n{i}", at=1e9, findings=found) for i in range(300)], "sweep")
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"state_dir": str(tmp_path / "state")}))
    env = {**os.environ, "SUPERV_SITE": str(tmp_path / "site.yaml")}
    script = f"{{ {shlex.join([*SUPERV, 'nodes', '--json'])}; echo $? >&2; }} | head -c 10"
    done = subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ('{\n  "schem', "141\n")


def test_a_signal_reaches_the_work(tmp_path: Path) -> None:
    (tmp_path / "sinfo").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "sinfo").chmod(0o755)
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"state_dir": str(tmp_path / "state")}))
    env = {"SUPERV_SITE": str(tmp_path / "site.yaml"), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)):
        began = subprocess.Popen([*SUPERV, "exclude", "n1", "--reason", "x"], env=env)
        while not any(
            procfs.name(grand)
            for pid in procfs.children(began.pid)
            for grand in procfs.children(pid)
        ):
            time.sleep(0.01)
        began.send_signal(number)
        assert began.wait(AMPLE_S) == code


def test_a_deadline_that_is_none_is_refused(tmp_path: Path) -> None:
    env = {**os.environ, "SUPERV_STORAGE_TIMEOUT_S": "soon"}
    done = subprocess.run([*SUPERV, "nodes"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "superv: SUPERV_STORAGE_TIMEOUT_S=soon: expected 0.5 to 3600 seconds\n",
    )
