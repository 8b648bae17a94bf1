"""NaN and infinity in a checkpoint are found by a sample of each tensor, without torch."""

from __future__ import annotations

import io
import math
import os
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest

from supervisor.checkpoints import numbers
from supervisor.checkpoints.dcp import CheckpointState, verify
from supervisor.checkpoints.metadata import parse

FULL = Path(__file__).parents[1] / "data" / "dcp" / "step-5"
WEIGHT = "tok_embeddings.weight"


def damage(home: Path, fqn: str, value: float) -> Path:
    """A copy of a real checkpoint in which one number of a tensor is another one."""
    copy = Path(shutil.copytree(FULL, home / "step-5"))
    shards = parse((FULL / ".metadata").read_bytes()).shards
    file, piece = next((f, p) for f, pieces in shards.items() for p in pieces if p.fqn == fqn)
    data = bytearray((copy / file).read_bytes())
    record = zipfile.ZipFile(io.BytesIO(data[piece.offset : piece.offset + piece.length]))
    (listed,) = [one for one in record.infolist() if one.filename.endswith("/data/0")]
    names, extra = struct.unpack_from("<HH", data, piece.offset + listed.header_offset + 26)
    begin = piece.offset + listed.header_offset + 30 + names + extra
    struct.pack_into("<f", data, begin + listed.file_size // 2, value)
    (copy / file).write_bytes(data)
    return copy


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("fqn", [WEIGHT, f"optimizer.state.{WEIGHT}.exp_avg"])
def test_it_is_not_to_be_resumed(tmp_path: Path, fqn: str, value: float) -> None:
    report = verify(str(damage(tmp_path, fqn, value)))
    assert report.state is CheckpointState.UNUSABLE
    assert report.reason.startswith(f"{fqn} holds NaN or infinity (in __")


def test_other_numbers_are_fine(tmp_path: Path) -> None:
    assert verify(str(damage(tmp_path, WEIGHT, 3.4e38))).verified


def test_a_buffer_may_hold_infinity() -> None:
    """A mask of minus infinity: no optimizer has a state for it."""
    tensors = frozenset({WEIGHT, "mask", f"optimizer.state.{WEIGHT}.exp_avg"})
    assert numbers.learned(tensors) == tensors - {"mask"}


TORCH = """
import io, math, sys, torch
out = sys.argv[1]
kinds = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int32)
for kind in kinds:
    for count in (1, 3, 500, 5000, 100001):
        numbers = torch.randn(count, dtype=torch.float64).to(kind)
        name = f"{out}/{str(kind)[6:]}.{count}"
        torch.save(numbers, f"{name}.fine")
        for at, where in ((0, "first"), (count // 2, "middle"), (count - 1, "last")):
            for bad in (math.nan, math.inf, -math.inf) if kind is not torch.int32 else ():
                other = numbers.clone()
                other[at] = bad
                torch.save(other, f"{name}.{where}{bad}")
"""


@pytest.mark.skipif("SUPERV_TITAN" not in os.environ, reason="SUPERV_TITAN names a Python of torch")
def test_every_type_as_torch_writes_it(tmp_path: Path) -> None:
    argv = [os.environ["SUPERV_TITAN"], "-c", TORCH, str(tmp_path)]
    subprocess.run(argv, check=True, capture_output=True)
    seen = sorted(tmp_path.iterdir())
    assert len(seen) == 4 * 5 * 10 + 5
    for path in seen:
        data = path.read_bytes()
        found = numbers.not_finite(
            data[: numbers.EDGE],
            data[-numbers.EDGE :],
            len(data),
            lambda count, at, data=data: data[at : at + count],
        )
        kind, _, which = path.name.split(".", 2)
        assert found is (None if kind == "int32" else which != "fine"), path.name


@pytest.mark.parametrize("cut", range(0, 1600, 40))
def test_what_is_cut_short_says_nothing(cut: int) -> None:
    shards = parse((FULL / ".metadata").read_bytes()).shards
    file, piece = next((f, p) for f, ps in shards.items() for p in ps if p.fqn == WEIGHT)
    data = (FULL / file).read_bytes()[piece.offset : piece.offset + piece.length]
    found = numbers.not_finite(data[:cut], data[cut:], len(data), lambda count, at: b"")
    assert found in (None, False)
