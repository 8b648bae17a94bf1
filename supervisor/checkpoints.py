"""List and verify checkpoints of torch.distributed.checkpoint (DCP), without torch.

A DCP checkpoint is a directory with a pickled `.metadata`, written last, and the shard files that
it names (torch/distributed/checkpoint/metadata.py and filesystem.py, torch 2.13). The pickle is
read by an unpickler that knows nothing but inert stand-ins: it imports and calls nothing.

Storage may hang, so callers with something to lose ask through `supervisor.storage`, which runs
this module as a process of its own. For that process's sake it imports little.
"""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import re
import resource
import signal
import socket
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

SCHEMA = 1  # of a Scan as JSON
REQUIRED = ("model", "optimizer", "lr_scheduler", "train_state", "dataloader")  # TorchTitan's

# A synthetic job of 480 ranks with 960,000 pieces had 142 MB of metadata. This is a bound on what
# a damaged file can make us read.
MAX_METADATA = 256 * 1024 * 1024  # bytes
CHILD_MEMORY = 8 * 1024**3  # bytes of address space; a crafted pickle can ask for any amount
MAX_PROBES = 4096  # pieces looked at in one checkpoint; every shard's first and last always are

STEP_DIR = re.compile(r"step-(0|[1-9][0-9]*)")
ATTEMPT_DIR = re.compile(r"a[0-9]{4,}")
ZIP_START, ZIP_END, ZIP_END_SIZE = b"PK\x03\x04", b"PK\x05\x06", 22  # torch.save writes a zip file


class State(StrEnum):
    """What is known of a checkpoint. Only VERIFIED may be resumed from."""

    VERIFIED = "verified"
    INCOMPLETE = "incomplete"  # no .metadata: still being written, or never finished
    UNUSABLE = "unusable"  # damaged, or not a full training state
    UNKNOWN = "unknown"  # storage did not let us look


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One checkpoint as it was found."""

    path: str
    step: int  # from the directory's name, step-N; -1 where it has another name
    state: State
    reason: str  # one line; empty when verified
    bytes: int  # of the metadata and of the shards that it names, as far as they were looked at
    mtime: float  # Unix time in s of the metadata, or of the directory where there is none

    @property
    def verified(self) -> bool:
        return self.state is State.VERIFIED


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The checkpoints under a directory, highest step first. As JSON: what the child prints."""

    directory: str
    exists: bool  # False: nothing has been saved there yet
    found: tuple[Report, ...]
    schema: int = SCHEMA


class _BadError(Exception):
    """The checkpoint can't be used; the text says why, in one line."""


# --- the metadata file


class _Inert:
    """Stands in for every class, function and constant that a pickle may name; does nothing."""

    __slots__ = ("args", "state")

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, name: str) -> Any:
        """A field of the pickled object; None where it has none."""
        return self.state.get(name) if isinstance(self.state, dict) else None


_METADATA = "torch.distributed.checkpoint.metadata"
_DTYPES = """float64 float32 float16 bfloat16 complex32 complex64 complex128 bool
    int8 int16 int32 int64 uint8 uint16 uint32 uint64 float8_e4m3fn float8_e4m3fnuz float8_e5m2
    float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2"""
ALLOWED = frozenset(
    {(_METADATA, name) for name in (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )}
    | {("torch", name) for name in ("Size", "device", *_DTYPES.split())}
    | {
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("builtins", "getattr"),  # how Python 3.11 pickles a member of an enum; inert here too
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePosixPath"),
        ("pathlib._local", "PosixPath"),  # Python 3.13's name for it
        ("pathlib._local", "PurePosixPath"),
    }
)  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """Resolves allowed names to inert classes made for this one load; imports nothing."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._known: dict[tuple[str, str], type[_Inert]] = {}

    def find_class(self, module: str, name: str) -> type[_Inert]:
        key = (module, name)
        if key not in ALLOWED:
            raise _BadError(f".metadata names {module}.{name}: refused")
        if key not in self._known:
            self._known[key] = type(name, (_Inert,), {"__slots__": ()})
        return self._known[key]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Where one tensor chunk or object lies in a shard file."""

    fqn: str
    offset: int
    length: int
    is_zip: bool  # False when an extension (compression) transformed it: content unknown


@dataclass(frozen=True, slots=True)
class _Contents:
    tensors: frozenset[str]  # fqns
    objects: frozenset[str]  # fqns
    shards: dict[str, list[_Piece]]  # by file name


def _kind(value: Any) -> str:
    return type(value).__name__ if isinstance(value, _Inert) else ""


def _ints(size: Any) -> tuple[int, ...] | None:
    """The numbers of a pickled torch.Size; None for none."""
    if value := (size.args[0] if _kind(size) == "Size" and size.args else None):
        return tuple(value)
    return () if _kind(size) == "Size" else None


def _entries(metadata: Any, name: str) -> Iterable[tuple[Any, Any]]:
    table = metadata.get(name) if _kind(metadata) == "Metadata" else None
    if not isinstance(table, dict) or not table:
        raise _BadError(f".metadata holds no {name}")
    return table.items()


def _place(index: Any, info: Any) -> tuple[str, _Piece]:
    """The shard file and the piece that one entry of storage_data describes."""
    if _kind(index) != "MetadataIndex" or _kind(info) != "_StorageInfo":
        raise _BadError(".metadata's storage_data is not of the usual form")
    fqn, file = index.get("fqn"), info.get("relative_path")
    offset, length = info.get("offset"), info.get("length")
    if not (isinstance(fqn, str) and isinstance(file, str)):
        raise _BadError(".metadata's storage_data is not of the usual form")
    if not file or "/" in file or "\0" in file or file in {".", ".."}:
        raise _BadError(f".metadata names a shard outside the checkpoint: {file}")
    if not all(type(number) is int and 0 <= number < 2**62 for number in (offset, length)):
        raise _BadError(f".metadata gives no valid place for {fqn}")
    return file, _Piece(fqn, offset, length, info.get("transform_descriptors") is None)


def _contents(metadata: Any) -> _Contents:
    """What the metadata lists, each item with a place in a shard. Raises _BadError."""
    shards: dict[str, list[_Piece]] = {}
    placed: set[tuple[str, tuple[int, ...] | None]] = set()
    for index, info in _entries(metadata, "storage_data"):
        file, piece = _place(index, info)
        shards.setdefault(file, []).append(piece)
        placed.add((piece.fqn, _ints(index.get("offset"))))
    tensors, objects = set(), set()
    for fqn, item in _entries(metadata, "state_dict_metadata"):
        if not isinstance(fqn, str):
            raise _BadError(".metadata's state_dict_metadata is not of the usual form")
        if _kind(item) == "TensorStorageMetadata":
            tensors.add(fqn)
            places = [_ints(chunk.get("offsets")) for chunk in item.get("chunks") or ()]
        else:
            objects.add(fqn)
            places = [None]
        if missing := sum((fqn, place) not in placed for place in places):
            raise _BadError(f".metadata lacks {missing} of {len(places)} places of {fqn}")
    for pieces in shards.values():
        pieces.sort(key=lambda piece: piece.offset)
    return _Contents(frozenset(tensors), frozenset(objects), shards)


def _parse_metadata(data: bytes) -> _Contents:
    """Read a `.metadata` file's content. Raises _BadError, whatever the bytes are."""
    try:
        return _contents(_Unpickler(data).load())
    except _BadError:
        raise
    except Exception as error:  # unpickling damaged data may raise anything (pickle's own docs)
        raise _BadError(f".metadata can't be read: {type(error).__name__}: {error}") from error


# --- verification


def _check_keys(contents: _Contents, required: Sequence[str]) -> None:
    """Every required key is there. TorchTitan flattens its state: `optimizer.state.…`,
    `dataloader.dp_rank_0`, `train_state.step`; its model tensors have no prefix at all.
    """
    tops = {fqn.split(".", 1)[0] for fqn in contents.tensors | contents.objects}
    states = {*REQUIRED, *required} - {"model"}
    if any(fqn.split(".", 1)[0] not in states for fqn in contents.tensors):
        tops.add("model")
    missing = [key for key in required if key not in tops]
    if missing and tops.isdisjoint(states):
        raise _BadError(f"model only: cannot resume training (no {', '.join(missing)})")
    if missing:
        raise _BadError(f".metadata lacks {', '.join(missing)}")


def _probed(pieces: list[_Piece], most: int) -> Iterator[_Piece]:
    """The first and the last piece, and others evenly between them."""
    most = max(2, most)
    if len(pieces) <= most:
        yield from pieces
    else:
        yield from (pieces[i * (len(pieces) - 1) // (most - 1)] for i in range(most))


def _check_piece(fd: int, file: str, piece: _Piece) -> None:
    """The piece begins and ends as a zip file does: a hole or lost tail reads as zeros."""
    where = f"{file}: {piece.fqn} at {piece.offset}"
    start = os.pread(fd, len(ZIP_START), piece.offset)
    if start != ZIP_START:
        raise _BadError(f"{where} begins with {start.hex()}, expected {ZIP_START.hex()} (zip)")
    end = os.pread(fd, ZIP_END_SIZE, piece.offset + max(0, piece.length - ZIP_END_SIZE))
    if not end.startswith(ZIP_END):
        raise _BadError(f"{where} ends with {end[:4].hex()}, expected {ZIP_END.hex()} (zip)")


def _check_shard(path: str, file: str, pieces: list[_Piece], probes: int) -> int:
    """One shard file is there, long enough, and not blank; returns its size in bytes."""
    needed = max(piece.offset + piece.length for piece in pieces)
    try:
        # Not blocking: a FIFO in a shard's place must not hold us.
        fd = os.open(Path(path, file), os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise _BadError(f"{file} is missing ({needed} bytes expected)") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _BadError(f"{file} is not a regular file")
        if status.st_size < needed:
            raise _BadError(f"{file} is truncated: {status.st_size} bytes, {needed} expected")
        for piece in _probed([piece for piece in pieces if piece.is_zip], probes):
            _check_piece(fd, file, piece)
    finally:
        os.close(fd)
    return status.st_size


def _read_metadata(path: str) -> tuple[bytes, float] | None:
    """The metadata's bytes and mtime; None where there is none."""
    try:
        fd = os.open(Path(path, ".metadata"), os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _BadError(".metadata is not a regular file")
        if status.st_size > MAX_METADATA:
            raise _BadError(f".metadata has {status.st_size} bytes, {MAX_METADATA} at most")
        return file.read(MAX_METADATA), status.st_mtime


def verify(path: str, required: Sequence[str] = REQUIRED) -> Report:
    """Look whether this directory is a checkpoint that training can be resumed from.

    Its metadata parses, every item of it has a place, every shard is as long as the places need,
    sampled places look like what torch.save writes, and the required keys are there. Bits that
    rotted inside a tensor are not found. Never raises for what it finds; an OSError is UNKNOWN.
    """
    match = STEP_DIR.fullmatch(Path(path).name)
    step = int(match[1]) if match else -1
    size, mtime = 0, 0.0

    def report(state: State, reason: str = "") -> Report:
        reason = " ".join(reason.encode(errors="backslashreplace").decode().split())[:400]
        return Report(path=path, step=step, state=state, reason=reason, bytes=size, mtime=mtime)

    try:
        mtime = Path(path).stat().st_mtime
        if (raw := _read_metadata(path)) is None:
            return report(State.INCOMPLETE, "no .metadata: not finished")
        data, mtime = raw
        size = len(data)
        contents = _parse_metadata(data)
        _check_keys(contents, required)
        probes = MAX_PROBES // len(contents.shards)
        for file in sorted(contents.shards):
            size += _check_shard(path, file, contents.shards[file], probes)
    except _BadError as bad:
        return report(State.UNUSABLE, str(bad))
    except (FileNotFoundError, NotADirectoryError):
        return report(State.UNUSABLE, "no such directory")
    except OSError as error:
        return report(State.UNKNOWN, f"can't be read: {error.strerror or error}")
    return report(State.VERIFIED)


def scan(directory: str, required: Sequence[str] = REQUIRED, *, above: int = -1) -> Scan:
    """The checkpoints `step-N` and `aNNNN/step-N` of a directory with N > above, each verified.

    Raises OSError when a directory can't be listed; one that does not exist is an empty Scan.
    """
    root = Path(directory)
    if not root.exists():
        return Scan(directory=directory, exists=False, found=())
    names = list(root.iterdir())
    for attempt in [path for path in names if ATTEMPT_DIR.fullmatch(path.name) and path.is_dir()]:
        names += attempt.iterdir()
    steps = [
        (int(match[1]), str(path)) for path in names if (match := STEP_DIR.fullmatch(path.name))
    ]
    newest_first = sorted((pair for pair in steps if pair[0] > above), reverse=True)
    found = tuple(verify(path, required) for _, path in newest_first)
    return Scan(directory=directory, exists=True, found=found)


def latest_verified(found: Iterable[Report]) -> Report | None:
    """The verified checkpoint with the highest step."""
    return max((one for one in found if one.verified), key=lambda one: one.step, default=None)


# --- the child


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """What the child says: `answer`, a Scan, or `error`, why it could not look."""
    if question["command"] not in ("scan", "verify"):
        from supervisor import retention

        return retention.answer(question)
    path, required = question["path"], tuple(question.get("required", REQUIRED))
    try:
        if question["command"] == "verify":
            found = Scan(directory=path, exists=True, found=(verify(path, required),))
        else:
            found = scan(path, required, above=question.get("above", -1))
    except OSError as error:
        return {"error": f"{error.filename or path}: {error.strerror}"}
    return {"answer": asdict(found)}


def serve(fd: int) -> None:
    """Fork a child for every question on a SOCK_SEQPACKET socket, until its other end closes.

    With each question (JSON) comes the descriptor for the answer: the child's pid on a line of its
    own, at once, then the answer as JSON. This process itself touches no storage.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    with socket.socket(fileno=fd) as link:
        while True:
            data, fds, _, _ = socket.recv_fds(link, 1 << 16, 1)
            if not data:
                return
            if os.fork():
                os.close(fds[0])
                continue
            link.close()
            with os.fdopen(fds[0], "wb") as out:
                out.write(b"%d\n" % os.getpid())
                out.flush()
                _limit_memory()
                gc.disable()  # a million pieces make no cycles; looking takes half of the time
                out.write(json.dumps(answer(json.loads(data))).encode())
            os._exit(0)


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > CHILD_MEMORY:
        resource.setrlimit(resource.RLIMIT_AS, (CHILD_MEMORY, hard))


if __name__ == "__main__":
    assert sys.argv[1] == "serve", "supervisor.storage starts this"
    serve(int(sys.argv[2]))
