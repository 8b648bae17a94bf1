"""What root loads, runs and reads: nothing that another user could have put there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from strangers import NOBODY, SETPRIV, as_stranger, meeting_place, needs_root

from healthchecks.checks.libs import _load
from healthchecks.frame import state
from healthchecks.frame.check import Findings, Status, Unknown
from healthchecks.frame.context import Ctx, Memory
from healthchecks.many import ssh
from healthchecks.sources.verbs import Verbs
from launchers.slurm import Slurm, client_env
from supervisor.config import Ssh, load_site
from supervisor.core.errors import TransientError, UserError
from supervisor.doctor.machine import for_root
from supervisor.fleet.record import Fleet
from supervisor.fleet.schedule import cron_environment
from supervisor.fleet.slurm_programs import job_steps_here
from supervisor.fleet.sweep import sweep_lock
from supervisor.host import procfs, trusted

assert meeting_place  # a fixture


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder below which all is root's: pytest's own lies in /tmp."""
    path = Path(tempfile.mkdtemp(prefix="superv-test-", dir="/srv"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@needs_root
def test_what_is_roots_alone_is_trusted(place: Path) -> None:
    (place / "lib").mkdir()
    (place / "lib/x.so").write_text("")
    (place / "link").symlink_to("lib/x.so")
    for path in ("lib/x.so", "link", "not there yet/x.so", "lib/../link"):
        assert trusted.problem(place / path) == ""
    assert trusted.problem("/usr/bin/python3") == ""


@needs_root
@pytest.mark.parametrize(
    ("owner", "group", "mode", "word"),
    [
        (NOBODY, 0, 0o755, f"belongs to user {NOBODY} (mode 0755)"),
        (0, 0, 0o757, "others may write to it (mode 0757"),
        (0, 100, 0o775, "others may write to it (mode 0775, group 100)"),
        (0, 0, 0o1777, "others may write to it (mode 1777"),
    ],
)
@pytest.mark.parametrize("at", ["folder", "file"])
def test_one_part_of_the_path_that_others_may_change_is_enough(
    place: Path, owner: int, group: int, mode: int, word: str, at: str
) -> None:
    folder, file = place / "a", place / "a/b/c.so"
    file.parent.mkdir(parents=True)
    file.write_text("")
    changed = folder if at == "folder" else file
    os.chown(changed, owner, group)
    changed.chmod(mode)
    (place / "link").symlink_to(file)
    for path in (file, place / "link", place / "a/../a/b/c.so"):
        why = trusted.problem(path)
        assert why.startswith(f"{changed} ") and word in why and "\n" not in why


@needs_root
def test_a_link_of_another_user_is_his_whatever_it_leads_to(place: Path) -> None:
    (place / "link").symlink_to("/usr/bin")
    os.chown(place / "link", NOBODY, NOBODY, follow_symlinks=False)
    assert trusted.problem(place / "link/python3").startswith(f"{place}/link belongs to user")


@needs_root
def test_links_in_a_circle_end(place: Path) -> None:
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    assert "too many links" in trusted.problem(place / "a")


@needs_root
def test_roots_file_in_a_sticky_folder_is_no_code_but_may_be_its_own_state(
    meeting_place: Path,
) -> None:
    library = meeting_place / "x.so"
    library.write_text("")
    assert trusted.problem(library).startswith("/tmp is root's and others may write")
    assert trusted.problem(library, sticky=True) == ""
    assert trusted.code(library) == ""  # in a folder of root's own
    in_tmp = Path(tempfile.mkstemp(prefix="superv-", suffix=".so", dir="/tmp")[1])
    try:
        for why in (
            trusted.code(in_tmp),
            trusted.library(str(in_tmp), {}),
            trusted.program(str(in_tmp)),
        ):
            assert why.startswith("/tmp is root's and others may write to it")
    finally:
        in_tmp.unlink()


EVIL = "#!/bin/sh\nid -u > {mark}\n"


@needs_root
def test_root_runs_and_loads_nothing_of_a_users(
    meeting_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's Python, his library with a constructor, his program first on PATH."""
    home, mark = meeting_place / "user", meeting_place / "mark"
    (home / "bin").mkdir(parents=True)
    (home / "lib/python3.11/site-packages/nvidia/nccl/lib").mkdir(parents=True)
    for program in ("python", "nvme"):
        (home / "bin" / program).write_text(EVIL.format(mark=mark))
        (home / "bin" / program).chmod(0o755)
    library = home / "lib/python3.11/site-packages/nvidia/nccl/lib/libnccl.so.2"
    shutil.copy(_libm(), library)
    for path in (home, *home.rglob("*")):
        os.chown(path, 54321, 54321)
    monkeypatch.setenv("PATH", f"{home}/bin:/usr/bin:/bin")
    memory = Memory({}, time.time())
    ctx = Ctx(root=Path("/"), node="n1", now=time.time(), boot_id="b", memory=memory)
    for argv in ([f"{home}/bin/python", "-c", ""], ["nvme", "list"]):
        with pytest.raises(Unknown, match=r"is not run as root: .*belongs to user 54321"):
            ctx.command(*argv, deadline_s=5)
    assert not mark.exists()
    found = Findings()
    _load(ctx, found, str(library), "")
    result = found.result("")
    assert result.status is Status.UNKNOWN and "is not loaded as root" in result.seen
    assert str(library) not in Path("/proc/self/maps").read_text()
    with pytest.raises(Unknown, match="is not loaded as root"):
        Verbs(str(library), lambda _: None)


def _libm() -> str:
    return next(
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "libm.so" in line or "libc.so" in line
    )


@needs_root
def test_the_doctor_says_where_an_installation_is_roots(place: Path, meeting_place: Path) -> None:
    assert for_root(place).status in (Status.OK, Status.WARN)  # this test's own prefix counts too
    found = for_root(meeting_place)
    assert found.status is Status.WARN  # /tmp itself is everybody's
    assert "others may write to it" in found.result.seen
    assert "/opt/superv" in found.result.fix


@needs_root
def test_root_reads_and_writes_no_file_of_a_users(meeting_place: Path) -> None:
    site, fleet = meeting_place / "site.yaml", meeting_place / "fleet.db"
    site.write_text("node_python: /home/mallory/python\n")
    for path in (site, fleet):
        path.touch()
        os.chown(path, 54321, 54321)
    with pytest.raises(UserError, match=r"site\.yaml belongs to user 54321"):
        load_site({"SUPERV_SITE": str(site), "HOME": "/nonexistent"}, system=meeting_place / "none")
    with pytest.raises(UserError, match=r"fleet\.db belongs to user 54321"):
        Fleet(fleet)


def test_others_than_root_are_not_asked(tmp_path: Path) -> None:
    code = "from supervisor.host import trusted; print(repr(trusted.problem('/tmp/x.so')))"
    before = SETPRIV if os.geteuid() == 0 else ()
    done = subprocess.run(
        [*before, sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout == "''\n", done.stderr


@needs_root
def test_programs_and_libraries_are_found_in_roots_folders_only(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = place / "theirs", place / "ours"
    for folder in (theirs, ours):
        folder.mkdir()
        (folder / "tool").write_text("#!/bin/sh\n")
        (folder / "tool").chmod(0o755)
    os.chown(theirs, NOBODY, NOBODY)
    path, left_out = trusted.search_path({"PATH": f"{theirs}:relative:{ours}"})
    assert path.split(":")[0] == str(ours) and set(trusted.ROOT_PATH) & set(path.split(":"))
    assert [line.partition(" ")[0] for line in left_out] == [str(theirs), "relative"]
    assert trusted.search_path({})[0]  # a Prolog has none
    monkeypatch.setenv("PATH", f"{theirs}:{ours}")
    assert trusted.program("tool").startswith(f"{theirs} belongs to user")
    assert trusted.program(str(ours / "tool")) == "" and trusted.program("no such tool") == ""
    assert trusted.library("libx.so.1", {}) == ""
    assert "LD_LIBRARY_PATH" in trusted.library("libx.so.1", {"LD_LIBRARY_PATH": f"{theirs}"})


# What another user put at the name of the state folder before superv makes it.
PLANTED = {
    "a folder": ("os.mkdir(sys.argv[1])", "belongs to user"),
    "an open folder": ("os.mkdir(sys.argv[1]); os.chmod(sys.argv[1], 0o777)", "belongs to user"),
    "a link to root's": ("os.symlink('/root', sys.argv[1])", "is a link"),
    "a link to his": ("os.symlink('/tmp', sys.argv[1])", "is a link"),
    "a link to nothing": ("os.symlink('/tmp/nothing-here', sys.argv[1])", "is a link"),
    "a file": ("open(sys.argv[1], 'w')", "is no folder"),
    "a pipe": ("os.mkfifo(sys.argv[1])", "is no folder"),
}


@needs_root
@pytest.mark.parametrize("what", PLANTED)
def test_a_state_folder_that_another_user_planted_is_refused(
    meeting_place: Path, what: str
) -> None:
    meeting_place.chmod(0o1777)
    code, words = PLANTED[what]
    as_stranger(code, meeting_place / "health")
    with pytest.raises(OSError, match=words):
        state.usable(meeting_place / "health")


@needs_root
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_state_folder_that_others_may_write_to_is_refused(meeting_place: Path, mode: int) -> None:
    (meeting_place / "health").mkdir()
    (meeting_place / "health").chmod(mode)
    with pytest.raises(PermissionError, match="others may write to it"):
        state.usable(meeting_place / "health")


@needs_root
def test_a_state_folder_below_another_users_folder_is_refused(meeting_place: Path) -> None:
    os.chown(meeting_place, NOBODY, NOBODY)
    with pytest.raises(PermissionError, match=f"{meeting_place} belongs to user"):
        state.usable(meeting_place / "health")


def test_what_stands_in_the_state_folder_as_a_link_is_not_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "health", tmp_path / "outside"
    state.usable(folder)
    outside.write_text("precious")
    for name in ("n1.lock", "n1.json", "n1.json.new"):
        (folder / name).symlink_to(outside)
    with pytest.raises(OSError), state.locked(folder, "n1"):
        pass
    assert state.load(folder, "n1", "b").problem
    state.save(folder, "n1", state.KeptState(boot_id="b"))
    assert outside.read_text() == "precious" and not (folder / "n1.json").is_symlink()


# /proc of processes called slurmstepd: (its user, what it runs, its command line) → a job's step.
# Forms of setproctitle in Slurm 22.05, 23.02, 23.11, 24.05, 24.11, 25.05 and after.
STEPS = [
    (0, "/usr/sbin/slurmstepd", ["slurmstepd: [7.0]"], True),
    (0, "/usr/sbin/slurmstepd", ["slurmstepd: [7.batch]", "", ""], True),
    (0, "/usr/sbin/slurmstepd", ["slurmstepd: [7.extern]"], True),
    (0, "/usr/sbin/slurmstepd", ["slurmstepd: [7.interactive]"], True),
    (0, "/usr/sbin/slurmstepd", ["slurmstepd: [4294967290.4294967290]"], True),
    (0, "/usr/sbin/slurmstepd", ["slurmstepd: [7+1.0]"], True),
    (0, "/usr/sbin/slurmstepd", ["slurmstepd: [7.0+1]"], True),
    (0, "/usr/sbin/slurmstepd", ["slurmstepd: [7]"], True),
    (0, "/usr/sbin/slurmstepd", ["slurmstepd: [StepId=7.0]"], True),
    (0, "/usr/sbin/slurmstepd", ["slurmstepd: [s8K2TQ4M1RZ9V3.0]"], True),
    (0, "/opt/slurm/25.05/sbin/slurmstepd (deleted)", ["slurmstepd: [7.0]"], True),
    (0, "/usr/sbin/slurmstepd", ["/usr/sbin/slurmstepd", "infinity"], False),  # cgroup v2
    (0, "/usr/sbin/slurmstepd", ["/usr/sbin/slurmstepd"], False),
    (0, "/usr/sbin/slurmstepd", ["slurmstepd", "infinity"], False),
    (1000, "/home/u/slurmstepd", ["slurmstepd: [7.0]"], False),
    (1000, "/usr/sbin/slurmstepd", ["slurmstepd: [7.0]"], False),
    (0, "/usr/bin/python3.11", ["slurmstepd: [7.0]"], False),
]


@pytest.mark.parametrize(("uid", "exe", "argv", "step"), STEPS)
def test_which_slurmstepd_is_a_jobs(
    tmp_path: Path, uid: int, exe: str, argv: list[str], step: bool
) -> None:
    process = tmp_path / "4242"
    process.mkdir()
    row = " ".join(["4242 (slurmstepd) S 1 4242 4242", *["0"] * 15, "99", *["0"] * 30])
    (process / "stat").write_text(row)
    (process / "status").write_text(f"Name:\tslurmstepd\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
    (process / "exe").symlink_to(exe)
    (process / "cmdline").write_text("\0".join([*argv, ""]))
    assert job_steps_here(str(tmp_path)) is step


@needs_root
def test_a_users_program_called_slurmstepd_makes_no_node_busy(meeting_place: Path) -> None:
    program = meeting_place / "slurmstepd"
    shutil.copy("/bin/sleep", program)
    argv = ["bash", "-c", 'exec -a "slurmstepd: [7.0]" "$0" 60', str(program)]
    before = job_steps_here()
    child = subprocess.Popen([*SETPRIV, *argv])
    try:
        while procfs.executable(child.pid) != str(program):
            assert child.poll() is None
        assert procfs.argv(child.pid)[0] == "slurmstepd: [7.0]"
        assert procfs.real_uid(child.pid) == NOBODY
        assert job_steps_here() == before  # others' tests may run steps on this machine
    finally:
        child.kill()
        child.wait()


@needs_root
@pytest.mark.parametrize("trap", ["link", "fifo", "none"])
def test_root_makes_no_lock_in_a_users_folder(meeting_place: Path, trap: str) -> None:
    """A user's HOME may stay with sudo: root followed his link and made a file anywhere."""
    theirs, canary = meeting_place / "theirs", meeting_place / "made"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    traps = {"link": f"os.symlink({str(canary)!r}, sys.argv[1])", "fifo": "os.mkfifo(sys.argv[1])"}
    lock = theirs / "fleet.sweep.lock"
    if trap in traps:
        as_stranger(traps[trap], lock)
    site = load_site({"HOME": str(theirs)}, meeting_place / "none.yaml")
    site = replace(site, fleet_file=theirs / "fleet.db")
    with pytest.raises(UserError, match=f"belongs to user {NOBODY}"), sweep_lock(site):
        pass
    assert not canary.exists()
    assert [path.name for path in theirs.iterdir()] == [lock.name] * (trap in traps)


@needs_root
def test_root_knows_hosts_by_no_file_of_a_user(
    meeting_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(meeting_place, NOBODY, NOBODY)
    monkeypatch.setenv("HOME", str(meeting_place))
    session = ssh.SshSession(
        node="127.0.0.1", settings=Ssh(), command="x", order=b"", nonce="x", end=time.monotonic()
    )
    found = session.run()
    assert isinstance(found, ssh.NoReport) and found.status is Status.UNKNOWN
    assert f"{meeting_place} belongs to user {NOBODY}" in found.seen


@needs_root
def test_root_runs_no_sinfo_of_a_user(meeting_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sudo may keep a user's PATH: his sinfo ran as root in a sweep."""
    program, ran = meeting_place / "bin/sinfo", meeting_place / "ran"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nid -u >{ran}\n")
    program.chmod(0o755)
    os.chown(program.parent, NOBODY, NOBODY)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    slurm = Slurm(deadline_s=10.0)
    with contextlib.suppress(UserError, TransientError):  # what root's own says
        asyncio.run(slurm.nodes())
    assert not ran.exists()
    assert str(program.parent) not in slurm.env["PATH"]
    with contextlib.suppress(UserError):
        assert str(program.parent) not in cron_environment(os.environ)["PATH"]


@needs_root
def test_root_reads_no_slurm_conf_of_a_user(meeting_place: Path) -> None:
    conf = meeting_place / "slurm.conf"
    conf.write_text("PluginDir=/home/u/plugins\n")
    assert client_env({"SLURM_CONF": str(conf)})["SLURM_CONF"] == str(conf)
    os.chown(conf, NOBODY, NOBODY)
    with pytest.raises(UserError, match=rf"SLURM_CONF: .* belongs to user {NOBODY}"):
        client_env({"SLURM_CONF": str(conf)})


@needs_root
def test_roots_fleet_record_lies_beside_no_strangers_journal(meeting_place: Path) -> None:
    """SQLite takes a file called FLEET-journal for what a crash left, and rolls it back."""
    with Fleet(meeting_place / "fleet.db"):
        pass
    meeting_place.chmod(0o1777)
    with pytest.raises(UserError, match=r"root does not write it: .*mode 1777"):
        Fleet(meeting_place / "fleet.db")
