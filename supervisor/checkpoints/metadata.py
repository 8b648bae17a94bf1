"""The `.metadata` of a torch.distributed.checkpoint, read without torch and without trust.

It is a pickle (torch/distributed/checkpoint/metadata.py and filesystem.py, torch 2.13), read by an
unpickler that knows nothing but inert stand-ins: it imports and calls nothing. What it builds may
still be nested until C's stack overflows, or take all time and memory: the process that reads it
has limits (`supervisor.checkpoints.child`), and how it ended is judged (`…storage`).
"""

from __future__ import annotations

import io
import math
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise, product
from typing import Any

# A synthetic job of 480 ranks with 960,000 pieces had 142 MB of metadata. This is a bound on what
# a damaged file can make us read.
MAX_METADATA = 256 * 1024 * 1024  # bytes


class BadError(Exception):
    """The checkpoint can't be used; the text says why."""


def limits(size: int) -> tuple[int, int]:
    """What may be needed to read so many bytes of metadata: memory in bytes, CPU time in s.

    Measured with 200,000 pieces in 29 MB: 14 times its size, and 0.054 s per MB. A pickle can ask
    for any amount of both.
    """
    return min(8 << 30, (512 << 20) + 64 * size), 3 + size // 1_000_000


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
_LAYOUTS = {
    *("torch.strided", "torch.sparse_coo", "torch.sparse_csr", "torch.sparse_csc"),
    *("torch.sparse_bsr", "torch.sparse_bsc", "torch._mkldnn", "torch.jagged"),
}
_MEMORY_FORMATS = {
    *("TORCH_CONTIGUOUS_FORMAT", "TORCH_CHANNELS_LAST", "TORCH_PRESERVE_FORMAT"),
    "_MEM_FORMAT_ENCODING",
}
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


# torch's own have no hash either: as keys of a dict they can't be read.
_UNHASHABLE = ("Metadata", "StorageMeta", "_StorageInfo", "TensorProperties",
    "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")  # fmt: skip

_FUNCTIONS = ("getattr", "_get_layout")


def _hash_of_index(index: _Inert) -> int:
    """As torch's, it needs the name to be there already."""
    return hash(index.state["fqn"])


class _Unpickler(pickle.Unpickler):
    """Resolves allowed names to inert classes made for this one load; imports nothing."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._known: dict[tuple[str, str], Callable[..., _Inert]] = {}

    def find_class(self, module: str, name: str) -> Callable[..., _Inert]:
        key = (module, name)
        if key not in ALLOWED:
            raise BadError(f".metadata names {module[:100]}.{name[:100]}: refused")
        if key not in self._known:
            hashed = {"MetadataIndex": _hash_of_index, **dict.fromkeys(_UNHASHABLE)}
            more = {"__hash__": hashed[name]} if name in hashed else {}
            made = type(name, (_Inert,), {"__slots__": (), **more})
            self._known[key] = made if name not in _FUNCTIONS else lambda *args: made(*args)
        return self._known[key]


class _BuiltIns(pickle.Unpickler):
    """Builds dicts, lists, texts and numbers, and resolves no name at all."""

    def find_class(self, module: str, name: str) -> Any:
        raise BadError(f"it names {module[:100]}.{name[:100]}: refused")


def built_ins(data: bytes) -> Any:
    """A pickle of built-in values alone, as torch's flight recorder writes. Raises BadError."""
    try:
        return _BuiltIns(io.BytesIO(data)).load()
    except BadError:
        raise
    except Exception as error:  # a broken pickle raises anything at all
        raise BadError(f"no whole pickle ({type(error).__name__})") from error


class Form(Enum):
    """What a piece is written as."""

    ZIP = "zip"  # by torch.save
    ZSTD = "zstd"  # the same, through torch's extension `stream.zstd`
    OTHER = "of an unknown extension"


@dataclass(frozen=True, slots=True)
class Piece:
    """Where one tensor chunk or object lies in a shard file."""

    fqn: str
    offset: int
    length: int
    form: Form


@dataclass(frozen=True, slots=True)
class Contents:
    tensors: frozenset[str]  # fqns
    objects: frozenset[str]  # fqns
    shards: dict[str, list[Piece]]  # by file name


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
        raise BadError(f".metadata holds no {name}")
    return table.items()


def _place(index: Any, info: Any) -> tuple[str, Piece]:
    """The shard file and the piece that one entry of storage_data describes."""
    if _kind(index) != "MetadataIndex" or _kind(info) != "_StorageInfo":
        raise BadError(".metadata's storage_data is not of the usual form")
    fqn, file = index.get("fqn"), info.get("relative_path")
    offset, length = info.get("offset"), info.get("length")
    if not (isinstance(fqn, str) and isinstance(file, str)):
        raise BadError(".metadata's storage_data is not of the usual form")
    if not file or "/" in file or "\0" in file or file in {".", ".."}:
        raise BadError(f".metadata names a shard outside the checkpoint: {file}")
    if not all(type(number) is int and 0 <= number < 2**62 for number in (offset, length)):
        raise BadError(f".metadata gives no valid place for {fqn}")
    return file, Piece(fqn, offset, length, _form(info.get("transform_descriptors")))


def _form(descriptors: Any) -> Form:
    """The extensions that a piece went through, as `NAME/VERSION`, outermost last."""
    if not descriptors:
        return Form.ZIP
    usual = isinstance(descriptors, (list, tuple)) and isinstance(descriptors[-1], str)
    return Form.ZSTD if usual and descriptors[-1].startswith("stream.zstd/") else Form.OTHER


def _check_tensor(fqn: str, item: Any) -> list[tuple[int, ...]]:
    """The offsets of a tensor's chunks, where torch could make the tensor. Raises BadError."""
    size, properties = _ints(item.get("size")), item.get("properties")
    state = properties.state if _kind(properties) == "TensorProperties" else None
    dtype, layout, _, memory_format, _ = state if isinstance(state, tuple) else (None,) * 5
    usual = (
        isinstance(dtype, type)
        and dtype.__name__ in _DTYPES.split()
        and _kind(layout) == "_get_layout"
        and layout.args[0] in _LAYOUTS
        and _word(memory_format) in _MEMORY_FORMATS
    )
    if not usual or size is None or not all(type(n) is int and 0 <= n < 2**62 for n in size):
        raise BadError(f".metadata gives no valid type or size for {fqn}")
    boxes: list[_Box] = []
    chunks = item.get("chunks")
    if not isinstance(chunks, list):
        raise BadError(f".metadata gives no chunks of {fqn}")
    for chunk in chunks:
        begin, length = _ints(chunk.get("offsets")), _ints(chunk.get("sizes"))
        if begin is None or length is None or not len(begin) == len(length) == len(size):
            raise BadError(f".metadata gives no valid chunk of {fqn}")
        for first, count, most in zip(begin, length, size, strict=True):
            if not 0 <= first <= first + count <= most:
                raise BadError(f".metadata has a chunk beyond the size of {fqn}")
        boxes.append((begin, length))
    _check_cover(fqn, size, boxes)
    return [begin for begin, _ in boxes]


_Box = tuple[tuple[int, ...], tuple[int, ...]]  # where a chunk begins, and how long it is


def _check_cover(fqn: str, size: tuple[int, ...], boxes: list[_Box]) -> None:
    """The chunks, none of which goes beyond the tensor, fill it, and none covers another."""
    filled = [box for box in boxes if 0 not in box[1]]
    there, wanted = sum(math.prod(length) for _, length in filled), math.prod(size)
    if there != wanted:
        raise BadError(f".metadata's chunks of {fqn} hold {there} of its {wanted} elements")
    if len(filled) > 1 and not _tiles(size, filled):
        raise BadError(f".metadata has chunks of {fqn} that cover each other")


def _tiles(size: tuple[int, ...], boxes: list[_Box]) -> bool:
    """Whether boxes within `size`, of its volume in all, fill it."""
    cut = [dim for dim, most in enumerate(size) if any(box[1][dim] != most for box in boxes)]
    if len(cut) == 1:  # sharded along one dimension, as most are
        rows = sorted((begin[cut[0]], length[cut[0]]) for begin, length in boxes)
        return all(at + count == then for (at, count), (then, _) in pairwise(rows))
    # A box is known by its corners with signs (its indicator's difference along each dimension):
    # boxes fill another one exactly where their corners add up to its corners.
    corners: Counter[tuple[int, ...]] = Counter()
    for sign, (begin, length) in ((1, ((0,) * len(size), size)), *((-1, box) for box in boxes)):
        for far in product((0, 1), repeat=len(size)):
            corner = tuple(b + n * f for b, n, f in zip(begin, length, far, strict=True))
            corners[corner] += sign * (-1) ** sum(far)
    return not any(corners.values())


def _word(memory_format: Any) -> str:
    """How Python 3.11 pickles a member of an enum is getattr(class, name); later, class(number)."""
    if _kind(memory_format) == "getattr" and len(memory_format.args) == 2:
        return str(memory_format.args[1])
    return _kind(memory_format)


def _check_mapping(mapping: Any, fqns: set[str]) -> None:
    """What torch's save planner flattened is what is listed: a changed name is not found again.

    Other planners keep nothing here, or something of their own. Raises BadError.
    """
    if not mapping or not isinstance(mapping, dict):
        return
    if not any(isinstance(path, tuple) for path in mapping.values()):
        return
    if unknown := fqns - mapping.keys():
        raise BadError(f".metadata lists {min(unknown)}, which its planner_data does not know")
    for fqn, path in mapping.items():
        if not isinstance(path, tuple) or not path or ".".join(str(part) for part in path) != fqn:
            raise BadError(f".metadata's planner_data leads {str(fqn)[:100]} elsewhere")


def _contents(metadata: Any) -> Contents:
    """What the metadata lists, each item with a place in a shard. Raises BadError."""
    shards: dict[str, list[Piece]] = {}
    placed: set[tuple[str, tuple[int, ...] | None]] = set()
    for index, info in _entries(metadata, "storage_data"):
        file, piece = _place(index, info)
        shards.setdefault(file, []).append(piece)
        placed.add((piece.fqn, _ints(index.get("offset"))))
    tensors, objects = set(), set()
    places: Sequence[tuple[int, ...] | None]
    described: set[tuple[str, tuple[int, ...] | None]] = set()
    for fqn, item in _entries(metadata, "state_dict_metadata"):
        if not isinstance(fqn, str):
            raise BadError(".metadata's state_dict_metadata is not of the usual form")
        if _kind(item) == "TensorStorageMetadata":
            tensors.add(fqn)
            places = _check_tensor(fqn, item)
        elif _kind(item) == "BytesStorageMetadata":
            objects.add(fqn)
            places = [None]
        else:
            raise BadError(f".metadata does not say what {fqn} is")
        if missing := sum((fqn, place) not in placed for place in places):
            raise BadError(f".metadata lacks {missing} of {len(places)} places of {fqn}")
        described.update((fqn, place) for place in places)
    if more := placed - described:
        unknown = min(fqn for fqn, _ in more)
        raise BadError(f".metadata has {len(more)} places that it does not describe, of {unknown}")
    _check_mapping(metadata.get("planner_data"), tensors | objects)
    for pieces in shards.values():
        pieces.sort(key=lambda piece: piece.offset)
    return Contents(frozenset(tensors), frozenset(objects), shards)


def parse(data: bytes) -> Contents:
    """Read a `.metadata` file's content. Raises BadError or MemoryError, whatever they are."""
    try:
        return _contents(_Unpickler(data).load())
    except (BadError, MemoryError):
        raise
    except Exception as error:  # unpickling damaged data may raise anything (pickle's own docs)
        raise BadError(f".metadata can't be read: {type(error).__name__}: {error}") from error
