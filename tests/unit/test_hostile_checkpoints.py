"""What lies in a checkpoint folder stops no run: names, files of any kind, metadata that kill.

Made by another user where that matters. A checkpoint of ours beside it is found all the same.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest
from strangers import NOBODY, as_stranger, meeting_place, needs_root

from supervisor.checkpoints import storage
from supervisor.checkpoints.dcp import (
    MAX_REFUSED,
    CheckpointReport,
    CheckpointScan,
    CheckpointState,
    verify,
)
from supervisor.checkpoints.storage import Storage
from supervisor.core.errors import TransientError
from supervisor.core.names import attempt_of, first_free, step_of

FULL = Path(__file__).parents[1] / "data" / "dcp" / "step-5"
SHARD = "__0_0.distcp"
_ = meeting_place  # a fixture


def scan(directory: Path, deadline_s: float = 60) -> CheckpointScan:
    async def ask() -> CheckpointScan:
        async with Storage() as asked:
            return await asked.scan(str(directory), deadline_s=deadline_s)

    return asyncio.run(ask())


def asked(path: Path, deadline_s: float = 60) -> CheckpointReport:
    async def ask() -> CheckpointReport:
        async with Storage() as children:
            return await children.verify(str(path), deadline_s=deadline_s)

    return asyncio.run(ask())


def good(attempt: Path, step: int = 5) -> Path:
    return Path(shutil.copytree(FULL, attempt / f"step-{step}"))


def clean(report: CheckpointReport) -> bool:
    return report.reason.isprintable() and len(report.reason) <= 400


# --- names


HUGE = ["a99999999999999999999", "step-99999999999999999999", "step-" + "9" * 250, "a" + "1" * 254]
ODD = ["step-٣", "step-5\n", "step-5\x1b[2J", "step-\udcff", "step-05", "a0001\n", "a-001", "step-"]


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_names_that_are_none_of_ours_are_not_seen(tmp_path: Path, make) -> None:
    good(tmp_path)
    for name in (*HUGE, *ODD):
        make(tmp_path / name)
    found = scan(tmp_path).found
    assert [one.path for one in found] == [f"{tmp_path}/step-5"] and found[0].verified


def test_numbers_have_bounds() -> None:
    assert step_of("step-999999999999999") == 999_999_999_999_999 < 2**53
    assert attempt_of("a999999999") == 999_999_999
    for name in (*HUGE, *ODD):
        assert step_of(name) is None and attempt_of(name) is None


@pytest.mark.parametrize(
    ("names", "free"),
    [
        ((), 1),
        (("a0001", "a0002", "a0007"), 8),
        (("a0001", "a999999999"), 2),
        (("a999999999",), 1),
        (("a0002", "a50000", "a999999999", "a99999999999"), 50_001),
        (("step-5", "quarantine", "a1"), 1),
    ],
)
def test_nobody_uses_up_the_numbers_of_attempts(names: tuple[str, ...], free: int) -> None:
    assert first_free(names) == free


# --- what may stand in a file's place


def plant_link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def plant_loop(path: Path) -> None:
    path.symlink_to(path.name)


def plant_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def plant_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(path))


def plant_device(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes device nodes")
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero: it never ends


def plant_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def plant_sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)
    os.utime(path, (2**40, 2**40))


PLANTS = [
    *(Path.mkdir, os.mkfifo, plant_link, plant_loop, plant_dangling, plant_socket, plant_device),
    *(plant_link_to_device, plant_sparse, Path.touch),
]


@pytest.mark.parametrize("name", [".metadata", SHARD])
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_whatever_stands_in_a_files_place_condemns_that_checkpoint_alone(
    tmp_path: Path, name: str, plant
) -> None:
    good(tmp_path, 4)
    (good(tmp_path) / name).unlink()
    plant(tmp_path / "step-5" / name)
    bad, fine = scan(tmp_path, deadline_s=30).found
    assert bad.state in (CheckpointState.UNUSABLE, CheckpointState.INCOMPLETE) and clean(bad), bad
    assert fine.verified


def test_links_of_ours_are_followed(tmp_path: Path) -> None:
    step = good(tmp_path)
    (tmp_path / "blobs").mkdir()
    for name in (".metadata", SHARD):
        (step / name).rename(tmp_path / "blobs" / name)
        (step / name).symlink_to(f"../blobs/{name}")
    (tmp_path / "a0001").mkdir()
    (tmp_path / "a0001/step-7").symlink_to("../step-5")
    assert [one.state for one in scan(tmp_path).found] == [CheckpointState.VERIFIED] * 2


# --- metadata


def renamed(raw: bytes, name: str) -> bytes:
    """The metadata with another name for one shard, as long as it likes."""
    old = b"\x8c" + bytes([len(SHARD)]) + SHARD.encode()
    text = name.encode(errors="surrogatepass")
    frame = len(b"\x80\x04\x95") + 8  # one for all of it; without, its length need not be right
    assert raw.startswith(b"\x80\x04\x95") and old in raw
    return raw[:2] + raw[frame:].replace(old, b"X" + len(text).to_bytes(4, "little") + text)


@pytest.mark.parametrize("name", ["n" * 256, "\ud800", "\x1b[2J\n", "n" * 100_000, "a\x00b"])
def test_shards_of_any_name(tmp_path: Path, name: str) -> None:
    step = good(tmp_path)
    (step / ".metadata").write_bytes(renamed((step / ".metadata").read_bytes(), name))
    report = asked(step)
    assert report.state is CheckpointState.UNUSABLE and clean(report), report


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07", "x" * 100_000, "\u202ee\n\u2028", "\x9b2J"])
def test_a_class_of_any_name_is_one_clean_line(tmp_path: Path, name: str) -> None:
    step = good(tmp_path)
    text = name.encode()
    word = b"X" + len(text).to_bytes(4, "little") + text
    (step / ".metadata").write_bytes(b"\x80\x04" + word + word + b"\x93.")  # STACK_GLOBAL
    report = asked(step)
    assert report.state is CheckpointState.UNUSABLE and clean(report)
    assert report.reason.startswith(".metadata names ")


def nested(depth: int) -> bytes:
    """A dict whose key is a tuple in a tuple in a tuple…: C hashes it by recursion."""
    return b"\x80\x02})" + b"\x85" * depth + b"Ns."


def doubling(times: int) -> bytes:
    """A tuple of twice the same, and so on: its hash asks 2**times times."""
    return b"\x80\x02}" + b")" + b"2\x86" * times + b"Ns."


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (nested(3_000_000), "its reader was ended by SIGSEGV, twice"),
        (doubling(200), "its reader was ended by SIGXCPU (its limit of CPU time), twice"),
        (b"\x80\x02Nr\xff\xff\xff\xff.", "asks for more than 512 MB of memory"),
    ],
    ids=["stack", "time", "memory"],
)
def test_metadata_that_end_their_reader_condemn_that_checkpoint_alone(
    tmp_path: Path, raw: bytes, why: str
) -> None:
    good(tmp_path, 4)
    (good(tmp_path) / ".metadata").write_bytes(raw)
    bad, fine = scan(tmp_path, deadline_s=3).found  # shorter than the limit of CPU time
    assert bad.state is CheckpointState.UNUSABLE and why in bad.reason
    assert fine.verified


def children_of(pid: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGBUS])
def test_a_reader_that_was_killed_condemns_nothing(tmp_path: Path, number: signal.Signals) -> None:
    step = good(tmp_path)
    (step / ".metadata").write_bytes(doubling(200))

    async def scenario() -> None:
        async with Storage() as children:
            question = asyncio.ensure_future(children.verify(str(step), deadline_s=60))
            while children._server is None or not (there := children_of(children._server.pid)):
                await asyncio.sleep(0.01)
            os.kill(there[0], number)
            with pytest.raises(TransientError, match=f"was ended by {number.name}"):
                await question

    asyncio.run(scenario())


def test_who_computes_is_waited_for_and_who_hangs_is_not(tmp_path: Path) -> None:
    step = good(tmp_path)
    (step / ".metadata").write_bytes(doubling(200))

    async def scenario() -> None:
        async with Storage() as children:
            question = asyncio.ensure_future(children.verify(str(step), deadline_s=0.5))
            while children._server is None or not (there := children_of(children._server.pid)):
                await asyncio.sleep(0.01)
            await asyncio.sleep(1.5)  # three deadlines
            assert not question.done()
            os.kill(there[0], signal.SIGSTOP)  # as one that waits for storage: it uses no time
            with pytest.raises(TransientError, match=r"did not answer within 0\.5 s"):
                await question
            assert not children_of(children._server.pid) or storage._still_stuck(str(step))

    asyncio.run(scenario())


# --- another user


@needs_root
def test_what_a_stranger_puts_there_counts_for_nothing(meeting_place: Path) -> None:
    attempt = meeting_place / "a0001"
    fine = good(attempt)
    attempt.chmod(0o777)
    code = """
import shutil, socket
attempt, full = sys.argv[1:]
shutil.copytree(full, f"{attempt}/step-10")
os.mkdir(f"{attempt}/step-20", 0o700)
os.mkdir(f"{attempt}/step-30"); os.mkfifo(f"{attempt}/step-30/.metadata")
os.symlink("/etc", f"{attempt}/step-40")
os.symlink("step-5", f"{attempt}/step-50")
os.mkfifo(f"{attempt}/step-60")
for step in range(1000, 2000): os.mkdir(f"{attempt}/step-{step}")
os.mkdir(f"{attempt}/step-999999999999999")
"""
    as_stranger(code, attempt, FULL)
    found = scan(attempt).found
    assert found[0] == verify(str(fine)) and found[0].verified
    assert {one.state for one in found[1:]} == {CheckpointState.FOREIGN} and len(
        found
    ) == 1 + MAX_REFUSED
    assert found[-1].reason.endswith("; and 987 more like it")
    for step in (10, 20, 30, 40, 50):
        report = asked(attempt / f"step-{step}")
        assert report.state is CheckpointState.UNUSABLE and f"uid {NOBODY}" in report.reason, report


@needs_root
def test_an_attempt_that_is_a_strangers_is_named_and_none_of_its_checkpoints_counts(
    meeting_place: Path,
) -> None:
    as_stranger("os.mkdir(sys.argv[1], 0o777); os.chmod(sys.argv[1], 0o777)", _open(meeting_place))
    good(meeting_place / "open/a0001")
    (report,) = scan(meeting_place / "open/a0001").found
    assert report.state is CheckpointState.UNUSABLE and f"belongs to uid {NOBODY}" in report.reason
    (report,) = scan(meeting_place / "open").found
    assert report.state is CheckpointState.FOREIGN


def _open(place: Path) -> Path:
    (place / "open").mkdir()
    (place / "open").chmod(0o777)
    return place / "open/a0001"


@needs_root
@pytest.mark.parametrize("name", [".metadata", SHARD])
def test_a_file_of_a_stranger_condemns_the_checkpoint(meeting_place: Path, name: str) -> None:
    """He may change it between our look and the ranks' load, which trusts it."""
    step = good(meeting_place)
    os.chown(step / name, NOBODY, NOBODY)
    report = asked(step)
    assert (
        report.state is CheckpointState.UNUSABLE
        and f"{name} belongs to uid {NOBODY}" in report.reason
    )
    (step / name).unlink()
    step.chmod(0o777)
    as_stranger("os.symlink(sys.argv[1], sys.argv[2])", FULL / name, step / name)
    assert f"is a link that belongs to uid {NOBODY}" in asked(step).reason


@needs_root
def test_a_folder_that_somebody_else_owns_may_be_named_by_a_person(meeting_place: Path) -> None:
    """--from a colleague's checkpoint: all of it is his, or ours."""
    step = good(meeting_place / "theirs")
    for path in (meeting_place / "theirs", step, *step.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    assert asked(step).verified


def test_a_hundred_thousand_entries(tmp_path: Path) -> None:
    fine = good(tmp_path)
    for number in range(100_000):
        os.symlink("nowhere", f"{tmp_path}/step-x{number}")
    assert [one.path for one in scan(tmp_path).found] == [str(fine)]


def test_checkpoints_in_a_table_with_times_from_anywhere(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from supervisor.cli.checkpoints import checkpoints as command

    step = good(tmp_path)
    for when in (2**62, -(2**40)):
        try:
            os.utime(step / ".metadata", (when, when))
        except OSError:
            continue
        result = CliRunner().invoke(command, ["list", str(tmp_path)])
        assert result.exit_code == 0 and "verified" in result.output
