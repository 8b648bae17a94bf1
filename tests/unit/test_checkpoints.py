"""Verification against a real DCP checkpoint (tests/data/make_dcp.py) and damaged copies of it."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path, PosixPath

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.checkpoints import metadata
from supervisor.checkpoints.dcp import REQUIRED, CheckpointScan, CheckpointState, verify
from supervisor.checkpoints.storage import Storage
from supervisor.cli.checkpoints import checkpoints as command

DATA = Path(__file__).parents[1] / "data" / "dcp"
FULL, MODEL_ONLY = DATA / "step-5", DATA / "step-6"
SHARDS = ("__0_0.distcp", "__1_0.distcp")  # as long as their metadata needs, to the byte


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FULL, tmp_path / "step-5"))


def reason(path: Path, state: CheckpointState = CheckpointState.UNUSABLE) -> str:
    report = verify(str(path))
    assert report.state is state, report
    assert not report.verified and "\n" not in report.reason
    return report.reason


def test_a_full_checkpoint_is_verified():
    report = verify(str(FULL))
    assert (report.state, report.reason, report.step) == (CheckpointState.VERIFIED, "", 5)
    assert report.bytes == sum(path.stat().st_size for path in FULL.iterdir())
    assert report.mtime == (FULL / ".metadata").stat().st_mtime


def test_a_model_only_checkpoint_cannot_be_resumed():
    assert reason(MODEL_ONLY).startswith("model only: cannot resume training")
    assert verify(str(MODEL_ONLY), required=("model",)).verified


def test_keys_are_required_by_name():
    assert not verify(str(FULL), required=(*REQUIRED, "ema")).verified
    assert verify(str(FULL), required=(*REQUIRED, "ema")).reason == ".metadata lacks ema"
    assert verify(str(FULL), required=("train_state",)).verified


def test_a_missing_key_is_named(copy: Path):
    # The same length, so that the pickle stays whole: dataloader.… becomes datazoader.….
    raw = (copy / ".metadata").read_bytes()
    (copy / ".metadata").write_bytes(raw.replace(b"dataloader", b"datazoader"))
    assert reason(copy) == ".metadata lacks dataloader"


@pytest.mark.parametrize("shard", SHARDS)
def test_a_truncated_shard_is_named_with_both_lengths(copy: Path, shard: str):
    size = (FULL / shard).stat().st_size
    os.truncate(copy / shard, size - 1)
    assert reason(copy) == f"{shard} is truncated: {size - 1} bytes, {size} expected"


def test_a_missing_shard_is_named(copy: Path):
    (copy / SHARDS[1]).unlink()
    size = (FULL / SHARDS[1]).stat().st_size
    assert reason(copy) == f"{SHARDS[1]} is missing ({size} bytes expected)"


def test_a_longer_shard_does_no_harm(copy: Path):
    with (copy / SHARDS[0]).open("ab") as file:
        file.write(b"\0" * 100)
    assert verify(str(copy)).verified


def test_a_zero_filled_shard_is_found(copy: Path):
    size = (copy / SHARDS[0]).stat().st_size
    (copy / SHARDS[0]).write_bytes(b"\0" * size)
    assert "begins with 00000000, expected 504b0304" in reason(copy)


def test_a_zero_filled_tail_is_found(copy: Path):
    path = copy / SHARDS[0]
    data = path.read_bytes()
    path.write_bytes(data[:-30] + b"\0" * 30)
    assert "ends with 00000000, expected 504b0506" in reason(copy)


def test_a_shard_that_is_no_file_does_not_hold_us(copy: Path):
    (copy / SHARDS[0]).unlink()
    os.mkfifo(copy / SHARDS[0])
    assert reason(copy) == f"{SHARDS[0]} is not a regular file"


def test_without_metadata_it_is_incomplete_not_damaged(copy: Path):
    (copy / ".metadata").unlink()
    assert reason(copy, CheckpointState.INCOMPLETE) == "no .metadata: not finished"


def test_truncated_metadata(copy: Path):
    os.truncate(copy / ".metadata", 5000)
    assert reason(copy).startswith(".metadata can't be read: ")


def test_huge_metadata_is_not_read(copy: Path):
    os.truncate(copy / ".metadata", metadata.MAX_METADATA + 1)  # sparse
    assert reason(copy) == ".metadata has 268435457 bytes, 268435456 at most"


class _Evil:
    def __init__(self, function: object, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "named"),
    [(os.system, "posix.system"), (eval, "builtins.eval"), (__import__, "builtins.__import__")],
)
def test_a_malicious_pickle_is_refused_by_name(copy: Path, function: object, named: str):
    marker = copy / "ran"
    (copy / ".metadata").write_bytes(pickle.dumps(_Evil(function, f"touch {marker}")))
    assert reason(copy) == f".metadata names {named}: refused"
    assert not marker.exists()


def test_an_allowed_name_does_nothing_real():
    # builtins.getattr is on the list, for Python 3.11's enums. Really loaded, this is a function.
    raw = b"cbuiltins\ngetattr\n(cpathlib\nPosixPath\nS'home'\ntR."
    assert pickle.loads(raw) == PosixPath.home
    assert isinstance(metadata._Unpickler(raw).load(), metadata._Inert)


@pytest.mark.parametrize("name", [b"/etc/passwd\0", b"../step-5/_0", b"__0_0/distcp"])
def test_a_shard_outside_the_checkpoint_is_refused(copy: Path, name: bytes):
    raw = (copy / ".metadata").read_bytes()
    assert len(name) == len(SHARDS[0]) and SHARDS[0].encode() in raw
    (copy / ".metadata").write_bytes(raw.replace(SHARDS[0].encode(), name))
    assert reason(copy).startswith(".metadata names a shard outside the checkpoint")


def test_a_place_that_is_not_listed_is_missed(copy: Path):
    # The tensor is in state_dict_metadata under another name than in storage_data.
    raw = (copy / ".metadata").read_bytes()
    first = raw.index(b"output.bias.exp_avg_sq")
    (copy / ".metadata").write_bytes(raw[:first] + b"outpux" + raw[first + 6 :])
    assert reason(copy).startswith(".metadata lacks 2 of 2 places of optimizer.state.outpux")


def test_what_is_not_there_or_not_a_directory(tmp_path: Path):
    (tmp_path / "step-1").write_text("a file")
    assert reason(tmp_path / "step-1") == "not a directory"
    assert reason(tmp_path / "step-2") == "no such directory"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(shard=st.sampled_from(SHARDS), data=st.data())
def test_a_shard_shorter_than_needed_is_never_verified(copy: Path, shard: str, data: st.DataObject):
    whole = (FULL / shard).read_bytes()
    try:
        (copy / shard).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        assert not verify(str(copy)).verified
    finally:
        (copy / shard).write_bytes(whole)
    assert verify(str(copy)).verified


@pytest.fixture
def memory_limit():
    """As in the child: a damaged pickle may ask for more memory than there is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (metadata.limits(20_000)[0], hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _read_any(copy: Path, raw: bytes) -> None:
    (copy / ".metadata").write_bytes(raw)
    report = verify(str(copy))
    assert report.verified or report.reason
    assert "\n" not in report.reason


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(raw=st.binary(max_size=300))
@pytest.mark.usefixtures("memory_limit")
def test_any_bytes_as_metadata_give_a_reason(copy: Path, raw: bytes):
    _read_any(copy, raw)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.usefixtures("memory_limit")
def test_damaged_metadata_never_raises(copy: Path, data: st.DataObject):
    raw = bytearray((FULL / ".metadata").read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=8)):
        raw[at] = data.draw(st.integers(0, 255))
    _read_any(copy, bytes(raw))


# --- scan


def scan(directory: Path, above: int = -1) -> CheckpointScan:
    async def ask() -> CheckpointScan:
        async with Storage() as storage:
            return await storage.scan(str(directory), deadline_s=60, above=above)

    return asyncio.run(ask())


def lineage(root: Path) -> Path:
    """Attempts as superv lays them out, with what lies around in real ones."""
    for where in ("a0001/step-5", "a0001/step-10", "a0002/step-10", "a0002/step-20"):
        shutil.copytree(FULL, root / where)
    (root / "a0002/step-20/.metadata").unlink()
    os.truncate(root / "a0002/step-10" / SHARDS[1], 100)
    (root / "a0001/step-500.bad").mkdir()
    (root / "a0001/bad-step-500").mkdir()
    (root / "a0003").write_text("a file")
    (root / "quarantine/step-7").mkdir(parents=True)
    return root


def test_scan_lists_every_attempt_newest_first(tmp_path: Path):
    result = scan(lineage(tmp_path))
    assert [
        (one.path.removeprefix(f"{tmp_path}/"), one.step, one.state) for one in result.found
    ] == [
        ("a0002/step-20", 20, CheckpointState.INCOMPLETE),
        ("a0002/step-10", 10, CheckpointState.UNUSABLE),
        ("a0001/step-10", 10, CheckpointState.VERIFIED),
        ("a0001/step-5", 5, CheckpointState.VERIFIED),
    ]


def test_scan_of_one_attempt_above_a_step(tmp_path: Path):
    lineage(tmp_path)
    assert [one.step for one in scan(tmp_path / "a0001").found] == [10, 5]
    assert [one.step for one in scan(tmp_path / "a0001", above=5).found] == [10]


def test_scan_tells_empty_from_absent(tmp_path: Path):
    assert scan(tmp_path).exists and scan(tmp_path).found == ()
    assert not scan(tmp_path / "a0001").exists


# --- the child


def told(command: str, path: Path, **more: object) -> dict:
    """The answer of a real child, as JSON."""

    async def ask() -> dict:
        async with Storage() as storage:
            question = {"command": command, "path": str(path), **more}
            return await storage.ask(question, deadline_s=60)

    return asyncio.run(ask())


def test_the_child_answers_with_plain_data(tmp_path: Path):
    document = told("list", lineage(tmp_path))
    assert document["exists"] and document["refused"] == []
    paths = [str(tmp_path / name) for name in ("a0002/step-20", "a0002/step-10", "a0001/step-10")]
    assert document["paths"][:3] == paths
    assert told("verify", Path(paths[2])) == {
        "path": str(tmp_path / "a0001/step-10"),
        "step": 10,
        "state": "verified",
        "reason": "",
        "bytes": sum(path.stat().st_size for path in FULL.iterdir()),
        "mtime": (tmp_path / "a0001/step-10/.metadata").stat().st_mtime,
    }
    assert told("verify", MODEL_ONLY, required=["model"])["state"] == "verified"


def test_a_pickle_cannot_take_all_memory(copy: Path):
    # LONG_BINPUT: "remember this as number 4,294,967,295", an array of 64 GiB to the unpickler.
    (copy / ".metadata").write_bytes(b"\x80\x02Nr\xff\xff\xff\xff.")
    told_of = told("verify", copy)
    assert told_of["state"] == "unusable"
    assert told_of["reason"] == ".metadata asks for more than 512 MB of memory"


def test_the_child_never_imports_torch_nor_what_is_slow():
    code = "import sys, supervisor.checkpoints.child; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert {"torch", "numpy", "asyncio", "msgspec", "click", "rich"}.isdisjoint(loaded.split())
    assert "supervisor.checkpoints.child" in loaded.split()


# --- superv checkpoints


def test_cli_verify_says_it_in_one_line_and_its_exit_code():
    good = CliRunner().invoke(command, ["verify", str(FULL)])
    assert (good.exit_code, good.output) == (0, f"{FULL}: verified, 98.4 kB\n")
    bad = CliRunner().invoke(command, ["verify", str(MODEL_ONLY), "--json"])
    assert bad.exit_code == 1
    assert json.loads(bad.output)["found"][0]["state"] == "unusable"


def test_cli_list(tmp_path: Path):
    result = CliRunner().invoke(command, ["list", str(lineage(tmp_path))])
    assert result.exit_code == 0
    lines = [line.split() for line in result.output.splitlines()]
    assert [(line[0], line[1], line[-1]) for line in lines[1:5]] == [
        ("20", "incomplete", "a0002/step-20"),
        ("10", "unusable", "a0002/step-10"),
        ("10", "verified", "a0001/step-10"),
        ("5", "verified", "a0001/step-5"),
    ]
    size = (FULL / SHARDS[1]).stat().st_size
    why = f"{SHARDS[1]} is truncated: 100 bytes, {size} expected"
    assert f"10  a0002/step-10: {why}" in result.output
