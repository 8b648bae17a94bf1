"""Another user was there first, or may swap what is there: in every place that users share."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from strangers import NOBODY, Canary, as_stranger, meeting_place, needs_root

from healthchecks.frame.check import Unknown
from healthchecks.probes import shared_files
from healthchecks.probes.shards import Shards
from launchers.local import Local
from supervisor.agent.ranks import _remove_old_logs
from supervisor.channel import delivery
from supervisor.core.errors import UserError
from supervisor.core.ports import LaunchSpec
from supervisor.host import private
from supervisor.run import folder

assert meeting_place  # a fixture

# What another user does at the path that he is given; the second path is outside.
PLANTS = {
    "a file": "open(sys.argv[1], 'w').write('his')",
    "an open folder": "os.mkdir(sys.argv[1]); os.chmod(sys.argv[1], 0o777)",
    "a link": "os.symlink(sys.argv[2], sys.argv[1])",
    "a link to nothing": "os.symlink(sys.argv[2] + '/nothing', sys.argv[1])",
    "a pipe": "os.mkfifo(sys.argv[1])",
}


@pytest.fixture
def outside(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "outside")


def names_in(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


# --- a path that others may change ----------------------------------------------------------------


@needs_root
@pytest.mark.parametrize(
    ("owner", "group", "mode", "word"),
    [
        (0, 0, 0o755, ""),
        (0, 0, 0o775, ""),  # root's group is root's alone
        (0, 0, 0o1777, ""),
        (0, 100, 0o775, "has mode 0775: others may write there"),
        (0, 0, 0o777, "has mode 0777: others may write there"),
        (NOBODY, 0, 0o755, f"belongs to uid {NOBODY}, you are 0"),
        (NOBODY, 0, 0o1777, f"belongs to uid {NOBODY}, you are 0"),
    ],
)
def test_a_folder_on_the_way(
    meeting_place: Path, owner: int, group: int, mode: int, word: str
) -> None:
    way = meeting_place / "a"
    (way / "b").mkdir(parents=True)
    os.chown(way, owner, group)
    way.chmod(mode)
    (meeting_place / "link").symlink_to(way / "b")
    for path in (way / "b", way / "not there", meeting_place / "link", way / "b/../b"):
        assert private.problem(path) == (f"{way} {word}" if word else "")


@needs_root
def test_a_sticky_folder_holds_what_is_ours_and_is_not_ours(meeting_place: Path) -> None:
    meeting_place.chmod(0o1777)
    assert private.problem(meeting_place / "mine") == ""
    assert private.problem(meeting_place, inside=True) == ""
    assert "others may write there" in private.problem(meeting_place)
    as_stranger("os.symlink('/usr', sys.argv[1])", meeting_place / "link")
    assert f"link belongs to uid {NOBODY}" in private.problem(meeting_place / "link/bin")


def test_folders_that_are_made_are_open_to_nobody_elses_writing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        private.make(tmp_path / "a/b/c")
        private.folder(tmp_path / "a/b/c/d")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / p).stat().st_mode) for p in ("a", "a/b", "a/b/c", "a/b/c/d")]
    assert modes == [0o755, 0o755, 0o755, 0o700]


# --- a file that is put there ---------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("plant", PLANTS)
def test_what_stands_at_a_files_name_is_not_filled(
    meeting_place: Path, outside: Canary, plant: str
) -> None:
    meeting_place.chmod(0o777)  # where nothing protects: the kernel does not, nor a sticky bit
    file = meeting_place / "report.html"
    as_stranger(PLANTS[plant], file, outside.place / "precious")
    if plant in ("an open folder", "a pipe"):
        with pytest.raises(OSError, match="is no regular file"):
            private.write(file, b"mine")
    else:
        private.write(file, b"mine", mode=0o644)
        info = file.lstat()
        assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (0, 0o644)
        assert file.read_bytes() == b"mine" and not file.is_symlink()
    assert outside.lives() and names_in(meeting_place) == ["report.html"]


@needs_root
def test_a_hard_link_to_our_own_file_is_not_filled(meeting_place: Path, outside: Canary) -> None:
    (meeting_place / "report").hardlink_to(outside.place / "precious")
    private.write(meeting_place / "report", b"mine")
    assert outside.lives() and (meeting_place / "report").read_bytes() == b"mine"


def test_our_own_link_is_followed_and_no_device_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    private.write(tmp_path / "link", b"mine")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"mine"
    (tmp_path / "device").symlink_to("/dev/null")
    with pytest.raises(OSError, match="is no regular file"):
        private.write(tmp_path / "device", b"mine")
    assert names_in(tmp_path) == ["device", "file", "link"]


# --- the engine's state ---------------------------------------------------------------------------


def open_state(state: Path, outside: Path) -> None:
    state.mkdir()
    state.chmod(0o777)


def sticky_state(state: Path, outside: Path) -> None:
    state.mkdir()
    state.chmod(0o1777)  # the fleet record would lie at a name that all may take


def open_parent(state: Path, outside: Path) -> None:
    state.mkdir(mode=0o700)
    state.parent.chmod(0o777)


def planted(what: str) -> Callable[[Path, Path], None]:
    def plant(state: Path, outside: Path) -> None:
        state.parent.chmod(0o1777)
        as_stranger(PLANTS[what], state, outside)

    return plant


def planted_runs(state: Path, outside: Path) -> None:
    state.mkdir()
    state.chmod(0o777)
    as_stranger("os.symlink(sys.argv[2], sys.argv[1])", state / "runs", outside)
    state.chmod(0o755)  # a user who has heard of it


STATES: dict[str, Callable[[Path, Path], None]] = {
    "open": open_state,
    "sticky": sticky_state,
    "with an open parent": open_parent,
    "another's": planted("an open folder"),
    "a link": planted("a link"),
    "with runs elsewhere": planted_runs,
}


@needs_root
@pytest.mark.parametrize("what", STATES)
def test_a_state_directory_that_others_may_change_takes_no_run(
    meeting_place: Path, outside: Canary, what: str
) -> None:
    state = meeting_place / "state"
    STATES[what](state, outside.place)
    before = names_in(meeting_place)
    site, job = outside.place.parent / "site.yaml", outside.place.parent / "job.yaml"
    site.write_text(yaml.safe_dump({"state_dir": str(state), "node_dir": str(site.parent)}))
    trainer = {"command": ["true"], "ranks_per_node": 1}
    job.write_text(
        yaml.safe_dump({"name": "ring", "nodes": 1, "launcher": "local", "trainer": trainer})
    )
    done = subprocess.run(
        [sys.executable, "-m", "supervisor.cli", "launch", "--detach", str(job)],
        env={**os.environ, "SUPERV_SITE": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(f"superv: state_dir: {meeting_place}")
    assert done.stderr.rstrip().endswith(folder.MINE)
    assert names_in(meeting_place) == before and outside.lives()


@needs_root
def test_no_engine_is_started_where_a_run_could_be_swapped(meeting_place: Path) -> None:
    """A run that is there keeps its environment file: what an engine is started with."""
    run = meeting_place / "state/runs/ring"
    private.make(run)
    folder.check(run)
    run.parent.chmod(0o777)
    with pytest.raises(UserError, match=r"state/runs has mode 0777: others may write there"):
        folder.check(run)


# --- nodes ----------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("plant", PLANTS)
def test_the_local_launcher_remembers_nothing_in_anothers_folder(
    meeting_place: Path, outside: Canary, plant: str
) -> None:
    meeting_place.chmod(0o1777)
    home = meeting_place / f"superv-{os.getuid()}-local"
    as_stranger(PLANTS[plant], home, outside.place)
    before, launcher = names_in(meeting_place), Local(folder=home)
    spec = LaunchSpec(
        job_name="sv-trap", nodes=1, agent_argv=("true",), folder=str(meeting_place / "node")
    )
    with pytest.raises(UserError, match="must be a directory of mode 0700, owned by you"):
        asyncio.run(launcher.submit(launcher.plan(spec)))
    assert names_in(meeting_place) == before and outside.lives()


def test_the_local_launcher_wants_a_place_where_nobody_renames(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    launcher = Local(folder=tmp_path / "jobs")
    spec = LaunchSpec(job_name="x", nodes=1, agent_argv=("true",), folder=str(tmp_path / "node"))
    with pytest.raises(UserError, match=r"node_dir: .* has mode 0777: others may write there"):
        asyncio.run(launcher.submit(launcher.plan(spec)))
    assert names_in(tmp_path) == []


def agent(*argv: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SLURMD_NODENAME": "n1"}
    if home is not None:
        env[delivery.VARIABLE] = str(home)
    return subprocess.run(
        [sys.executable, "-m", "supervisor.agent", *argv],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )


@needs_root
@pytest.mark.parametrize("release", ["now", "0.1"])
@pytest.mark.parametrize("plant", PLANTS)
def test_an_agent_puts_nothing_into_anothers_folder(
    meeting_place: Path, outside: Canary, plant: str, release: str
) -> None:
    """Its lock, logs, sockets and files of ranks have known names: the folder has to be its own."""
    meeting_place.chmod(0o1777)
    home = meeting_place / "planted"
    as_stranger(PLANTS[plant], home, outside.place)
    before = names_in(meeting_place)
    done = agent(home=home) if release == "now" else agent(f"{meeting_place}/key", str(home))
    assert done.returncode == 2
    told = f"superv agent: {home}: must be a directory of mode 0700, owned by you\n"
    assert done.stdout == told and done.stderr == ""
    assert names_in(meeting_place) == before and outside.lives()


def test_logs_of_old_attempts_go_and_nothing_that_only_looks_like_them(
    tmp_path: Path, outside: Canary
) -> None:
    node = tmp_path / "n1"
    for number in range(2, 20):
        (node / f"a{number:04d}").mkdir(parents=True)
    looks = ("a\u00b2\u00b2\u00b2\u00b2", "a0003x", f"a{'9' * 200}", "a0000000003", "a-003")
    for name in looks:
        (node / name).mkdir()
    (node / "a0001").symlink_to(outside.place)
    _remove_old_logs(node, 20)
    left = {path.name for path in node.iterdir()}
    assert {"a0001", *looks} <= left and "a0002" not in left and "a0019" in left
    assert outside.lives()


# --- health checks in shared folders --------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("mode", [0o777, 0o1777])
@pytest.mark.parametrize("plant", PLANTS)
def test_a_name_that_is_taken_fails_no_probe_and_fills_no_file(
    meeting_place: Path, outside: Canary, plant: str, mode: int
) -> None:
    meeting_place.chmod(mode)
    for name in ("probe", ".superv-shard-n1-0"):
        as_stranger(PLANTS[plant], meeting_place / name, outside.place / "precious")
    with shared_files.entered(meeting_place, Path("/tmp")) as there:
        fd, name = shared_files.make(there, "probe")
        info = os.fstat(fd)
        assert stat.S_ISREG(info.st_mode) and info.st_size == 0 and info.st_uid == 0
        os.close(fd)
        os.unlink(name, dir_fd=there)
    Shards(meeting_place, Path("/tmp"), "n1", 1).close()
    assert outside.lives()
    assert set(names_in(meeting_place)) <= {"probe", ".superv-shard-n1-0"}


@needs_root
def test_where_nothing_at_the_name_can_be_removed_another_is_used(meeting_place: Path) -> None:
    """As for a user in another's sticky folder; root may remove files, but no folder so."""
    meeting_place.chmod(0o1777)
    as_stranger("os.makedirs(sys.argv[1] + '/full')", meeting_place / "probe")
    with shared_files.entered(meeting_place, Path("/tmp")) as there:
        fd, name = shared_files.make(there, "probe")
        os.close(fd)
    assert name.startswith("probe-") and (meeting_place / name).stat().st_uid == 0


@needs_root
@pytest.mark.parametrize("plant", ["a link", "a file", "a pipe", "a link to nothing"])
def test_a_folder_that_was_swapped_is_not_written_to(
    meeting_place: Path, outside: Canary, plant: str
) -> None:
    meeting_place.chmod(0o777)
    as_stranger(PLANTS[plant], meeting_place / "health", outside.place)
    with pytest.raises(Unknown, match="health is a link, or behind what is no folder"):
        Shards(meeting_place / "health", Path("/tmp"), "n1", 1)
    assert outside.lives()


@needs_root
def test_a_way_to_another_mount_is_not_gone(meeting_place: Path) -> None:
    """A link on the way is followed, as a path is; where it leads must be the mount asked about."""
    meeting_place.chmod(0o777)
    as_stranger("os.symlink('/dev', sys.argv[1])", meeting_place / "shared")
    with pytest.raises(Unknown, match="shared/shm leads to another mount than /tmp"):
        Shards(meeting_place / "shared/shm", Path("/tmp"), "n1", 1)
    with (
        pytest.raises(Unknown, match="shared/null leads to another mount"),
        shared_files.existing(meeting_place / "shared/null", Path("/tmp"), 0),
    ):
        pass


@needs_root
@pytest.mark.parametrize("plant", [p for p in PLANTS if p != "a file"])
def test_a_canary_that_was_swapped_is_not_opened(
    meeting_place: Path, outside: Canary, plant: str
) -> None:
    meeting_place.chmod(0o777)
    canary = meeting_place / "canary"
    as_stranger(PLANTS[plant], canary, outside.place / "precious")
    with (
        pytest.raises(Unknown, match=r"is no regular file|is a link, or"),
        shared_files.existing(canary, Path("/tmp"), 0),
    ):
        pass
