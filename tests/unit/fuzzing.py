"""Inputs that nobody meant: `python fuzzing.py KIND FIRST COUNT [FOLDER]`, in a process of its own.

Input number N is made of N alone, so one that fails can be made again: FIRST=N, COUNT=1. With
FOLDER, metadata that differs from the sample and is called good is kept there, for torch to load.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import sys
import tarfile
import tempfile
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from supervisor.checkpoints import dcp, metadata
from supervisor.checkpoints.dcp import CheckpointState
from supervisor.core.errors import UserError
from supervisor.run import snapshot
from supervisor.run.journal import read, rebuild

DATA = Path(__file__).parents[1] / "data"
FULL = DATA / "dcp" / "step-5"
CORPUS = DATA / "fuzz"  # inputs that once got through, by kind; each is tried first

WORDS = ["", "x", "..", "a/b", "a\0b", "n" * 300, "\x1b[2J", "\udcff", "__0_0.distcp", ".metadata"]
NUMBERS = [0, 1, -1, 2**31, 2**62 - 1, 2**62, 2**63, 2**64, 10**30, -(2**63) - 1]
ODD = [*WORDS, *NUMBERS, None, True, 1.5, float("nan"), float("inf"), b"\xff", [], {}, ()]


def mangled(chance: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """Bytes changed, dropped, doubled or taken from another input, one to eight times."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at, length = chance.randrange(len(out) + 1), chance.choice((1, 1, 2, 4, 16, 300))
        match chance.randrange(6):
            case 0 | 1:
                out[at : at + 1] = bytes([chance.randrange(256)])
            case 2:
                del out[at : at + length]
            case 3:
                out[at:at] = out[at : at + length] * chance.choice((1, 2, 50))
            case 4:
                begin = chance.randrange(len(other or data))
                out[at : at + length] = (other or data)[begin : begin + length]
            case 5:
                out[at : at + 4] = chance.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
    return bytes(out)


def changed(chance: random.Random, value: Any, depth: int = 0) -> Any:
    """Plain data with a few places changed."""
    if chance.random() < (0.02 if depth else 0):
        return chance.choice(ODD)
    if isinstance(value, dict):
        items = [(k, changed(chance, v, depth + 1)) for k, v in value.items()]
        if items and chance.random() < 0.05:
            items.pop(chance.randrange(len(items)))
        if chance.random() < 0.03:
            items.append((chance.choice(WORDS), chance.choice(ODD)))
        return dict(items)
    if isinstance(value, list):
        return [changed(chance, item, depth + 1) for item in value]
    return value


# --- journal


def _sample_journal() -> list[bytes]:
    return (CORPUS / "journal.sample").read_bytes().splitlines(keepends=True)


def _crc(body: bytes) -> bytes:
    return b'{"crc":"%08x",' % zlib.crc32(body) + body[1:] + b"\n"


def journal(folder: Path) -> Callable[[int], bytes]:
    lines, path = _sample_journal(), folder / "journal"
    bodies = [b"{" + line[len(b'{"crc":"00000000",') : -1] for line in lines]

    def one(number: int) -> bytes:
        chance = random.Random(number)
        some = lines[: chance.randrange(1, len(lines) if number % 16 == 0 else 6)]
        at = chance.randrange(len(some))
        match number % 4:
            case 0:
                some[at] = mangled(chance, some[at], lines[-1])
            case 1:  # a checksum that is right
                some[at] = _crc(mangled(chance, bodies[at], bodies[-1]))
            case 2:
                data = changed(chance, json.loads(bodies[at]))
                some[at] = _crc(json.dumps(data, default=repr).encode())
            case 3:  # whole events, in another order
                data = json.loads(chance.choice(bodies))
                some.insert(at, _crc(json.dumps(changed(chance, data), default=repr).encode()))
                for n, line in enumerate(some):
                    body = json.loads(b"{" + line[len(b'{"crc":"00000000",') : -1])
                    some[n] = _crc(json.dumps({**body, "n": n + 1}).encode())
        return b"".join(some)

    def check(number: int, data: bytes | None = None) -> str:
        path.write_bytes(one(number) if data is None else data)
        try:
            rebuild(read(path))
        except UserError as error:
            assert "\n" not in str(error), error
            return "refused"
        return "read"

    return check  # type: ignore[return-value]


# --- metadata


def _stand_ins() -> None:
    """Classes that pickle writes under the names of torch's."""
    for module, name in sorted(metadata.ALLOWED):
        if module in ("builtins", "collections", "pathlib", "pathlib._local"):
            continue
        there = sys.modules.setdefault(module, types.ModuleType(module))
        setattr(there, name, type(name, (), {"__module__": module, "__qualname__": name}))
    size = sys.modules["torch"].Size
    size.__new__ = lambda cls, *args: object.__new__(cls)
    size.__init__ = lambda self, value=(): setattr(self, "value", value)
    size.__reduce__ = lambda self: (type(self), (self.value,))


def _make(name: str, **state: Any) -> Any:
    module = "filesystem" if name == "_StorageInfo" else "metadata"
    made = getattr(sys.modules[f"torch.distributed.checkpoint.{module}"], name)()
    made.__dict__.update(state)
    return made


def _structure(chance: random.Random) -> bytes:
    """A whole Metadata with a few odd places."""

    def odd(usual: Any, often: float = 0.02) -> Any:
        return chance.choice(ODD) if chance.random() < often else usual

    def size(*numbers: int) -> Any:
        return odd(sys.modules["torch"].Size(odd(tuple(odd(number) for number in numbers))))

    names = ["weight", "optimizer.a", "lr_scheduler.b", "train_state.c", "dataloader.d"]
    items: dict[Any, Any] = {}
    places: dict[Any, Any] = {}
    shared = [_make("ChunkStorageMetadata", offsets=size(0), sizes=size(4))]
    for name in names:
        fqn = odd(name)
        if name == "weight":
            chunks = odd(shared * chance.choice((1, 1, 2, 1000)))
            items[fqn] = _make("TensorStorageMetadata", size=size(4), chunks=chunks)
        else:
            items[fqn] = _make("BytesStorageMetadata")
        index = _make("MetadataIndex", fqn=odd(fqn), offset=size(0) if name == "weight" else None)
        info = _make(
            "_StorageInfo",
            relative_path=odd(chance.choice(("__0_0.distcp", "__1_0.distcp"))),
            offset=odd(0),
            length=odd(65713 if chance.random() < 0.1 else 1000),
            transform_descriptors=odd(None),
        )
        places[odd(index)] = odd(info)
    whole = _make("Metadata", state_dict_metadata=odd(items), storage_data=odd(places))
    return pickle.dumps(odd(whole), protocol=chance.choice((2, 4)))


def metadata_(folder: Path, keep: Path | None) -> Callable[[int], str]:
    _stand_ins()
    raw = (FULL / ".metadata").read_bytes()
    step = Path(shutil.copytree(FULL, folder / "step-5"))

    def one(number: int) -> bytes:
        chance = random.Random(number)
        if number % 3 == 0:
            return mangled(chance, raw)
        if number % 3 == 1:  # a byte or two: more of these are still read
            at, new = chance.randrange(len(raw)), chance.randrange(256)
            return raw[:at] + bytes([new]) + raw[at + 1 :]
        try:
            return _structure(chance)
        except (TypeError, AttributeError, pickle.PicklingError):  # what is no key of a dict
            return b""

    def check(number: int, data: bytes | None = None) -> str:
        data = one(number) if data is None else data
        try:
            metadata.parse(data)
        except (metadata.BadError, MemoryError):
            if number % 16:
                return "refused"
        (step / ".metadata").write_bytes(data)
        report = dcp.verify(str(step))
        assert report.state in (CheckpointState.VERIFIED, CheckpointState.UNUSABLE), report
        assert report.reason.isprintable() and len(report.reason) <= 400
        assert bool(report.reason) != report.verified
        if keep is not None and report.verified and data != raw and number % 3 != 2:
            (keep / f"{number}.metadata").write_bytes(data)
        return report.state.value

    return check


# --- the packed code


def _tar(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _member(chance: random.Random) -> tuple[tarfile.TarInfo, bytes]:
    usual = ["a.py", "p/b.py", "p/c/d.py", "\udcff.py"]
    odd = ["p", "/etc/x", "../x", "p/../../x", "", ".", "l", "l/x"]
    info = tarfile.TarInfo(chance.choice(usual if chance.random() < 0.8 else odd))
    info.mode = chance.choice((0o644, 0o4777, 0))
    info.type = chance.choice([tarfile.REGTYPE] * 60 + [bytes([n]) for n in b"1234567LKxgSV"])
    info.linkname = chance.choice(("", "/etc", "../..", "a.py"))
    data = b"x" * chance.choice((0, 1, 600))
    info.size = len(data)
    return info, data


def archive(folder: Path) -> Callable[[int], str]:
    place, outside = folder / "there", folder / "outside"
    place.mkdir(mode=0o700)
    outside.mkdir()
    (outside / "canary").write_text("canary")
    links = {"/l": str(outside)}

    def one(number: int) -> bytes:
        chance = random.Random(number)
        there = changed(chance, links) if chance.random() < 0.5 else links
        there = {**there, chance.choice(("/l/x", "/../x", "/p/n", "/m", "/l")): str(outside)}
        text = json.dumps(
            there if chance.random() < 0.9 else chance.choice(ODD), default=repr
        ).encode()
        info = tarfile.TarInfo(snapshot.LINKS)
        info.size = len(text)
        plain = _tar([(info, text), *(_member(chance) for _ in range(chance.randrange(4)))])
        match number % 3:
            case 0:
                return gzip.compress(mangled(chance, plain), 1, mtime=0)
            case 1:
                return mangled(chance, gzip.compress(plain, 1, mtime=0))
        return gzip.compress(plain, 1, mtime=0)

    def check(number: int, data: bytes | None = None) -> str:
        data = one(number) if data is None else data
        path = folder / "code"
        path.write_bytes(data)
        try:
            copy = snapshot.unpack(path, place, hashlib.sha256(data).hexdigest()[:16])
        except (ValueError, OSError) as error:
            assert "\n" not in str(error), error
            said = "refused"
        else:
            said = "unpacked"
            os.rename(copy, folder / "gone")
            subtree = folder / "gone"
            for found, _, _ in os.walk(subtree):
                os.chmod(found, 0o700)
            shutil.rmtree(subtree)
        assert os.listdir(outside) == ["canary"] and os.listdir(place) == [], "outside the copy"
        assert sorted(os.listdir(folder)) == ["code", "outside", "there"]
        return said

    return check


def main(kind: str, first: int, count: int, keep: Path | None = None) -> None:
    import fuzzing_texts  # it needs what stands above

    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seen: dict[str, int] = {}
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as made:
        folder = Path(made)
        checks: dict[str, Callable[[], Any]] = {
            "journal": lambda: journal(folder),
            "metadata": lambda: metadata_(folder, keep),
            "archive": lambda: archive(folder),
            "wire": lambda: fuzzing_texts.frames(),
            "job": lambda: fuzzing_texts.texts("job", folder),
            "site": lambda: fuzzing_texts.texts("site", folder),
        }
        check = checks[kind]()
        for path in sorted(CORPUS.glob(f"{kind}-*")):
            check(0, path.read_bytes())
        for number in range(first, first + count):
            try:
                said = check(number)
            except BaseException:
                print(f"{kind} {number} fails", file=sys.stderr)
                raise
            seen[said] = seen.get(said, 0) + 1
            if number % 500 == 0:
                print(f"{kind}: all before {number} went well", file=sys.stderr)
    print(json.dumps(seen))


if __name__ == "__main__":
    kind, first, count, *keep = sys.argv[1:]
    main(kind, int(first), int(count), Path(keep[0]) if keep else None)
