"""What is packed of a trainer's code, and what a node makes of it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from supervisor.run import snapshot
from supervisor.run.snapshot import CODE, Snapshot


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A trainer's folder with code, and with much that is none."""
    files = {
        "train.py": "import helper",
        "helper.py": "VALUE = 1",
        "package/__init__.py": "",
        "package/part.py": "PART = 1",
        "package/native.so": "binary",
        "conf/run.toml": "a = 1",
        "data/tokens.bin": "tokens",
        "data/deep/more.bin": "tokens",
        "checkpoint/a0001/step-5/notes.json": "{}",
        ".git/hooks.py": "git",
        "venv/pyvenv.cfg": "",
        "venv/lib/site.py": "site",
        "__pycache__/helper.cpython-311.pyc": "",
    }
    for name, text in files.items():
        path = tmp_path / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "work"


def question(work: Path, *entry: str, **more: Any) -> dict[str, Any]:
    usual = {"entry": entry, "script": str(work / "train.py"), "module": False, "pythonpath": ""}
    return {**usual, "workdir": str(work), "leave": [str(work / "checkpoint")], **more}


def pack(work: Path, *entry: str, **more: Any) -> Snapshot:
    told, _ = snapshot.pack(question(work, *entry, **more))
    return msgspec.convert(told, Snapshot)


def names(packed: Snapshot, work: Path) -> list[str]:
    return [str(Path(path).relative_to(work)) for path in packed.sums]


def unpacked(work: Path, place: Path, *entry: str, **more: Any) -> Path:
    told, data = snapshot.pack(question(work, *entry, **more))
    archive = place / "code"
    archive.write_bytes(data)
    return snapshot.unpack(archive, place / "there", told["digest"])


def test_code_is_taken_and_nothing_else(work: Path) -> None:
    packed = pack(work)
    assert names(packed, work) == [
        *("conf/run.toml", "helper.py", "package/__init__.py", "package/part.py", "train.py"),
    ]
    assert packed.left_out == ()
    assert pack(work).digest == packed.digest, "the same files give the same snapshot"


def test_arguments_that_name_code_name_the_copy(work: Path, tmp_path: Path) -> None:
    (tmp_path / "far.toml").write_text("b = 1")
    script = str(work / "train.py")
    entry = (script, "conf/run.toml", f"--other={tmp_path}/far.toml", "missing.toml", "data")
    packed = pack(work, *entry)
    assert [packed.word(word) for word in entry] == [
        f"{CODE}{script}",
        f"{CODE}{work}/conf/run.toml",
        f"--other={CODE}{tmp_path}/far.toml",
        "missing.toml",
        "data",
    ]
    assert pack(work, module=True).path == f"{CODE}{work}"
    packed = pack(work, pythonpath="package")
    assert packed.word("package") == f"{CODE}{work}/package:{work}/package"


def test_a_change_is_named(work: Path) -> None:
    before = pack(work)
    (work / "data/tokens.bin").write_text("others")
    assert before.changed(pack(work)) == ""
    (work / "helper.py").write_text("VALUE = 2")
    assert before.changed(pack(work)) == str(work / "helper.py")
    (work / "helper.py").unlink()
    assert before.changed(pack(work)) == str(work / "helper.py")


def test_the_copy_stands_on_its_own(work: Path, tmp_path: Path) -> None:
    there = unpacked(work, tmp_path)
    copy = Path(f"{there}{work}")
    (work / "helper.py").write_text("VALUE = 2")
    (work / "data/tokens.bin").write_text("newer")
    say = "import helper, package.part, sys; print(helper.VALUE, package.part.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", say], cwd=copy, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", f"{copy}/package/part.py"]
    assert (copy / "data/tokens.bin").read_text() == "newer", "data is read where it is"
    assert (copy / "package/native.so").read_text() == "binary"
    assert (copy / "data").is_symlink() and not (copy / "package").is_symlink()
    assert (copy / "helper.py").stat().st_mode & 0o222 == 0
    assert unpacked(work, tmp_path) != there, "other code is another copy"


def test_a_script_that_can_be_run_stays_so(work: Path, tmp_path: Path) -> None:
    (work / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (work / "run.sh").chmod(0o755)
    copy = Path(f"{unpacked(work, tmp_path)}{work}/run.sh")
    assert subprocess.run([copy], capture_output=True, text=True, check=True).stdout == "ran\n"


def test_links_are_followed_once(work: Path, tmp_path: Path) -> None:
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs/shared.py").write_text("SHARED = 1")
    (work / "libs").symlink_to(tmp_path / "libs")
    (work / "again.py").symlink_to(work / "helper.py")
    (work / "package/loop").symlink_to(work)
    (work / "dangling.py").symlink_to(work / "nowhere.py")
    assert {"libs/shared.py", "again.py"} <= set(names(pack(work), work))
    copy = Path(f"{unpacked(work, tmp_path)}{work}")
    assert not (copy / "libs").is_symlink() and not (copy / "again.py").is_symlink()
    assert (copy / "package/loop").is_symlink()


def test_limits_are_told(work: Path) -> None:
    (work / "large.json").write_bytes(b" " * (snapshot.MAX_FILE + 1))
    many = work / "zillions"
    many.mkdir()
    for number in range(snapshot.MAX_ENTRIES + 1):
        (many / f"{number}.py").touch()
    packed = pack(work)
    assert [line.partition(":")[0] for line in packed.left_out] == [
        "larger than 1 MB",
        "more than 2000 entries, or too much",
    ]
    assert f"{many} is read where it is" in packed.summary()
    (many / "0.py").unlink()
    (many / "1.py").unlink()
    packed = pack(work)
    assert len(packed.sums) == snapshot.MAX_FILES
    assert any(line.startswith("beyond 2000 files") for line in packed.left_out)
    assert "helper.py" in names(packed, work), "limits cut what is deep"


def archive(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> tuple[Path, str]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "code").write_bytes(out.getvalue())
    import hashlib

    return tmp_path / "code", hashlib.sha256(out.getvalue()).hexdigest()[:16]


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../out.py"),
        tarfile.TarInfo("/etc/out.py"),
        tarfile.TarInfo("a/../../out.py"),
        link("a", "/etc"),
    ],
    ids=lambda info: info.name,
)
def test_nothing_leads_out_of_the_copy(tmp_path: Path, member: tarfile.TarInfo) -> None:
    path, digest = archive(tmp_path, (tarfile.TarInfo("links.json"), b"{}"), (member, b""))
    with pytest.raises(ValueError, match=r"leads out|is not a file"):
        snapshot.unpack(path, tmp_path / "there", digest)
    assert not (tmp_path / "there" / digest).exists()


def test_a_damaged_archive_is_refused(work: Path, tmp_path: Path) -> None:
    told, data = snapshot.pack(question(work))
    (tmp_path / "code").write_bytes(data[:-1])
    with pytest.raises(ValueError, match="damaged"):
        snapshot.unpack(tmp_path / "code", tmp_path / "there", told["digest"])
    assert os.listdir(tmp_path / "there") == []


def packed(tmp_path: Path, links: str, *names: str) -> tuple[Path, str]:
    members = [(tarfile.TarInfo(name), b"x") for name in names]
    return archive(tmp_path, (tarfile.TarInfo("links.json"), links.encode()), *members)


@pytest.mark.parametrize(
    ("links", "why"),
    [
        ('{"/l": "OUT", "/l/x": "/nowhere"}', "lies behind a link"),
        ('{"/../x": "OUT"}', "leads out"),
        ('["/l"]', "not of the usual form"),
        ('{"/l": 5}', "not of the usual form"),
        ("[" * 100_000, "damaged"),
    ],
)
def test_links_lead_nowhere_for_us(tmp_path: Path, links: str, why: str) -> None:
    (tmp_path / "out").mkdir()
    path, digest = packed(tmp_path, links.replace("OUT", str(tmp_path / "out")), "a.py")
    with pytest.raises(ValueError, match=why):
        snapshot.unpack(path, tmp_path / "there", digest)
    assert os.listdir(tmp_path / "out") == [] and os.listdir(tmp_path / "there") == []


def test_an_archive_has_an_end(tmp_path: Path) -> None:
    """A gigabyte of zeros in a megabyte, and a file that is a hole."""
    import gzip
    import hashlib

    hole = tarfile.TarInfo("hole.py")
    hole.size, hole.type = 1 << 40, tarfile.GNUTYPE_SPARSE
    for plain in (bytes(snapshot.MAX_UNPACKED + 1), hole.tobuf(tarfile.GNU_FORMAT)):
        data = gzip.compress(plain, 1)
        (tmp_path / "code").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()[:16]
        with pytest.raises(ValueError, match=r"when it is unpacked|is not a file"):
            snapshot.unpack(tmp_path / "code", tmp_path / "there", digest)


def test_a_copy_is_not_made_where_others_write(work: Path, tmp_path: Path) -> None:
    told, data = snapshot.pack(question(work))
    (tmp_path / "code").write_bytes(data)
    place = tmp_path / "there"
    place.mkdir()
    (place / told["digest"]).mkdir()  # what somebody else would have us run
    place.chmod(0o777)
    with pytest.raises(ValueError, match="must be a folder of yours"):
        snapshot.unpack(tmp_path / "code", place, told["digest"])
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="must be a folder of yours"):
        snapshot.unpack(tmp_path / "code", tmp_path / "link", told["digest"])


def test_names_that_are_no_text_are_links(work: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(bytes(work) + b"/caf\xe9.py"))
    odd.write_text("ODD = 1")
    packed_ = pack(work)
    assert packed_.left_out == (f"a name that is not UTF-8: {str(odd)!a} is read where it is",)
    copy = Path(f"{unpacked(work, tmp_path)}{odd}")
    assert copy.is_symlink() and copy.read_text() == "ODD = 1"
    done = snapshot.take(question(work), None)  # as a launch does, through a child
    assert done == packed_


def test_a_fifo_holds_nobody(work: Path) -> None:
    os.mkfifo(work / "fifo.py")
    packed_ = pack(work, str(work / "fifo.py"))
    assert "fifo.py" not in names(packed_, work)
