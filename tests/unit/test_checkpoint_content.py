"""What a checkpoint holds: chunks that fill their tensors, shards that are not blank, checksums."""

from __future__ import annotations

import io
import math
import os
import random
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from supervisor.checkpoints import folders
from supervisor.checkpoints.dcp import CheckpointState, verify
from supervisor.checkpoints.metadata import BadError, Form, Piece, _check_cover, parse
from supervisor.checkpoints.shards import check_shard, read_shard
from supervisor.cli.checkpoints import checkpoints as command

FULL = Path(__file__).parents[1] / "data" / "dcp" / "step-5"
SHARD = "__0_0.distcp"

Box = tuple[tuple[int, ...], tuple[int, ...]]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FULL, tmp_path / "step-5"))


def cut(chance: random.Random, box: Box, times: int) -> list[Box]:
    """A box in parts, as parallel layouts make them, and as they don't."""
    begin, length = box
    dims = [dim for dim, count in enumerate(length) if count > 1]
    if not times or not dims:
        return [box]
    dim = chance.choice(dims)
    first = chance.randrange(1, length[dim])
    rest = length[dim] - first
    low = begin, (*length[:dim], first, *length[dim + 1 :])
    high = (
        (*begin[:dim], begin[dim] + first, *begin[dim + 1 :]),
        (*length[:dim], rest, *length[dim + 1 :]),
    )
    return [*cut(chance, low, times - 1), *cut(chance, high, times - 1)]


@pytest.mark.parametrize("seed", range(60))
def test_chunks_fill_their_tensor_or_are_refused(seed: int) -> None:
    chance = random.Random(seed)
    size = tuple(chance.randrange(1, 9) for _ in range(chance.randrange(0, 4)))
    boxes = cut(chance, ((0,) * len(size), size), chance.randrange(0, 5))
    chance.shuffle(boxes)
    _check_cover("w", size, boxes)
    _check_cover("w", size, [*boxes, ((0,) * len(size), (0,) * len(size))] if size else boxes)
    if len(boxes) < 2:
        return
    gone = chance.randrange(len(boxes))
    with pytest.raises(BadError, match=r"hold \d+ of its \d+ elements"):
        _check_cover("w", size, boxes[:gone] + boxes[gone + 1 :])
    # Another chunk twice, of the same volume: in all it is as much.
    alike = [b for n, b in enumerate(boxes) if n != gone]
    alike = [b for b in alike if math.prod(b[1]) == math.prod(boxes[gone][1])]
    if alike:
        doubled = [*boxes[:gone], *boxes[gone + 1 :], chance.choice(alike)]
        with pytest.raises(BadError, match="cover each other"):
            _check_cover("w", size, doubled)


def test_a_hole_that_an_overlap_makes_up_for_is_found() -> None:
    with pytest.raises(BadError, match="cover each other"):
        _check_cover("w", (4,), [((0,), (2,)), ((1,), (2,))])
    with pytest.raises(BadError, match="cover each other"):
        _check_cover("w", (2, 2), [((0, 0), (1, 2)), ((0, 0), (2, 1))])


def test_no_elements_need_no_chunk() -> None:
    _check_cover("w", (0, 4), [])
    _check_cover("w", (), [((), ())])
    with pytest.raises(BadError):
        _check_cover("w", (), [])


def test_a_place_that_nothing_describes_is_named(copy: Path) -> None:
    raw = (copy / ".metadata").read_bytes()
    first = raw.index(b"state_dict_metadata")
    there = raw.index(b"tok_embeddings.weight", first)
    parsed = parse(raw)
    assert "tok_embeddings.weight" in parsed.tensors
    other = raw[:there] + b"tok_embeddings.weighx" + raw[there + 21 :]
    (copy / ".metadata").write_bytes(other)
    assert verify(str(copy)).state is CheckpointState.UNUSABLE


def test_a_metadata_file_for_each_rank_is_a_form_of_its_own(copy: Path) -> None:
    (copy / ".metadata").rename(copy / "__0.metadata")
    found = verify(str(copy))
    assert found.state is CheckpointState.UNUSABLE and "use_collectives=False" in found.reason


@pytest.mark.parametrize("what", ["folder", "loop", "fifo"])
def test_metadata_that_is_no_file_is_not_the_storage_s_mood(copy: Path, what: str) -> None:
    (copy / ".metadata").unlink()
    if what == "folder":
        (copy / ".metadata").mkdir()
    elif what == "loop":
        (copy / ".metadata").symlink_to(".metadata")
    else:
        os.mkfifo(copy / ".metadata")
    assert verify(str(copy)).state is CheckpointState.UNUSABLE


# --- shards


def shard(tmp_path: Path, data: bytes, *forms: Form) -> tuple[folders.Folder, list[Piece]]:
    (tmp_path / SHARD).write_bytes(data)
    part = len(data) // len(forms)
    pieces = [Piece(f"w{n}", n * part, part, form) for n, form in enumerate(forms)]
    return folders.open_given(str(tmp_path)), pieces


def looked(tmp_path: Path, data: bytes, *forms: Form) -> None:
    folder, pieces = shard(tmp_path, data, *forms)
    with folder:
        check_shard(folder, SHARD, pieces, 10, lambda: None)


FRAME = b"\x28\xb5\x2f\xfd" + b"x" * 96


def test_what_extensions_wrote_is_not_blank_either(tmp_path: Path) -> None:
    looked(tmp_path, FRAME, Form.ZSTD)
    looked(tmp_path, FRAME, Form.OTHER)
    with pytest.raises(BadError, match="begins with 00000000, expected 28b52ffd"):
        looked(tmp_path, bytes(100), Form.ZSTD)
    with pytest.raises(BadError, match="begins with 00000000"):
        looked(tmp_path, FRAME + bytes(100), Form.ZSTD, Form.ZSTD)
    with pytest.raises(BadError, match="nothing but zeros"):
        looked(tmp_path, bytes(300), Form.OTHER, Form.OTHER, Form.OTHER)
    looked(tmp_path, bytes(100) + FRAME, Form.OTHER, Form.OTHER)  # a tensor may well be zero


def archive(data: bytes, *, checksums: bool = True, packed: bool = False) -> bytes:
    """As torch.save writes it, and, without checksums, as it does where those are turned off."""
    to = io.BytesIO()
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as out:
        out.writestr("archive/data/0", data)
    raw = to.getvalue()
    with zipfile.ZipFile(io.BytesIO(raw)) as there:
        crc = there.infolist()[0].CRC.to_bytes(4, "little")
    return raw if checksums else raw.replace(crc, bytes(4))


def whole(tmp_path: Path, data: bytes, *forms: Form) -> tuple[int, int]:
    folder, pieces = shard(tmp_path, data, *forms)
    with folder:
        found = read_shard(folder, SHARD, pieces, lambda: None)
    return found.pieces, found.not_compared


def test_checksums_are_compared_where_there_are_some(tmp_path: Path) -> None:
    good = archive(b"w" * 5000)
    assert whole(tmp_path, good + good, Form.ZIP, Form.ZIP) == (2, 0)
    without = archive(b"w" * 5000, checksums=False)
    assert whole(tmp_path, good + without, Form.ZIP, Form.ZIP) == (2, 1)
    assert whole(tmp_path, good, Form.OTHER) == (1, 1)
    middle = len(good) // 2
    for bad in (good[:middle] + b"v" + good[middle + 1 :], good.replace(b"w" * 4096, bytes(4096))):
        with pytest.raises(BadError, match="w0 at 0 is damaged"):
            whole(tmp_path, bad, Form.ZIP)


def test_an_archive_that_would_grow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadError, match="claims to hold more"):
        whole(tmp_path, archive(bytes(1 << 20), packed=True), Form.ZIP)
    with pytest.raises(BadError, match="is compressed"):
        whole(tmp_path, archive(bytes(range(256)), packed=True), Form.ZIP)


@pytest.mark.parametrize("seed", range(200))
def test_any_damage_to_an_archive_has_a_reason(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    raw = bytearray(archive(bytes(chance.randrange(256) for _ in range(300))))
    for _ in range(chance.randrange(1, 6)):
        raw[chance.randrange(len(raw))] = chance.randrange(256)
    try:
        whole(tmp_path, bytes(raw), Form.ZIP)
    except BadError as error:
        assert "\n" not in str(error)[:40]


def test_rot_inside_a_tensor_is_found_by_a_deep_look_alone(copy: Path) -> None:
    deep = verify(str(copy), deep=True)
    assert deep.verified and not deep.reason
    file = max(copy.glob("*.distcp"), key=lambda path: path.stat().st_size)
    raw = bytearray(file.read_bytes())
    header = raw.rindex(b"PK\x03\x04", 0, raw.index(b"/data/0"))
    place = header + 30 + sum(struct.unpack_from("<HH", raw, header + 26))
    raw[place] ^= 0x10  # a tensor's first byte
    file.write_bytes(raw)
    assert verify(str(copy)).verified
    assert verify(str(copy), deep=True).state is CheckpointState.UNUSABLE
    said = CliRunner().invoke(command, ["verify", "--deep", str(copy)])
    assert said.exit_code == 1 and "unusable" in said.output and file.name in said.output
    assert CliRunner().invoke(command, ["verify", str(copy)]).exit_code == 0
