"""Whether a tensor in a shard holds NaN or infinity: by a sample of it, and without torch.

What torch.save writes is a zip file. Its first record, `data.pkl`, names the type of the storage,
and a record `data/0` is the storage as it lies in memory (torch/serialization.py, torch 2.13). A
number is not finite where all bits of its exponent are set (IEEE 754; bfloat16 is half a float32).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Literal

EDGE = 2048  # bytes of a piece's beginning and end: the names, and a good part of the numbers
MIDDLE = 2048  # bytes of numbers from the middle of what lies between
# type in data.pkl → how memoryview calls such numbers' bits, and the bits of the exponent
_Code = Literal["H", "I", "Q"]
_FLOATS: dict[bytes, tuple[_Code, int]] = {
    b"\nBFloat16Storage\n": ("H", 0x7F80),
    b"\nHalfStorage\n": ("H", 0x7C00),
    b"\nFloatStorage\n": ("I", 0x7F80_0000),
    b"\nDoubleStorage\n": ("Q", 0x7FF0_0000_0000_0000),
}
# APPNOTE.TXT of PKWARE, 4.3.7 and 4.3.12: a record's own header, and that in the directory
_LOCAL = struct.Struct("<4s5H3I2H")
_LISTED = struct.Struct("<4s6H3I5H2I")
_RECORD = b"/data/0"
_IN_EXTRA = 0xFFFF_FFFF  # a size of 4 GB or more is in the extra field, first


def learned(tensors: frozenset[str]) -> frozenset[str]:
    """Those that an optimizer changes, and its own state: infinity means nothing in them.

    Others may hold it for good reason: a mask of minus infinity is a buffer.
    """
    own = frozenset(name for name in tensors if name.startswith("optimizer."))
    states = {name.removeprefix("optimizer.state.").rpartition(".")[0] for name in own}
    return own | (states & tensors)


def not_finite(
    head: bytes, tail: bytes, length: int, read: Callable[[int, int], bytes]
) -> bool | None:
    """Whether a number of the sample is NaN or infinite; None where nothing can be said.

    `head` and `tail` are the piece's first and last bytes (EDGE, or all of it), `length` is the
    piece's; `read(count, at)` reads more of it.
    """
    kind = next((form for name, form in _FLOATS.items() if name in head), None)
    begin, size = _begin(head), _size(tail)
    if kind is None or begin is None or size is None or begin + size > length:
        return None
    code, exponent = kind
    width = struct.calcsize(code)
    from_end = length - len(tail)
    first = head[begin : begin + size]
    skipped = max(0, from_end - begin) + width - 1
    skipped -= skipped % width
    last = tail[begin + skipped - from_end : begin + size - from_end] if skipped < size else b""
    samples = [first, last]
    if between := skipped - len(first) if skipped > len(first) else 0:
        count = min(MIDDLE, between)
        at = len(first) + (between - count) // 2
        samples.append(read(count, begin + at - at % width))
    return any(_any_set(data, code, width, exponent) for data in samples)


def _any_set(data: bytes, code: _Code, width: int, exponent: int) -> bool:
    numbers = memoryview(data)[: len(data) - len(data) % width].cast(code)
    return any(number & exponent == exponent for number in numbers)


def _begin(head: bytes) -> int | None:
    """Where the numbers begin in the piece."""
    name = head.find(_RECORD)
    at = head.rfind(b"PK\x03\x04", 0, name)
    if name < 0 or at < 0 or at + _LOCAL.size > len(head):
        return None
    *_, names, extra = _LOCAL.unpack_from(head, at)
    begin = at + _LOCAL.size + names + extra
    named = head[at + _LOCAL.size :][:names]
    return int(begin) if named.endswith(_RECORD) and begin <= len(head) else None


def _size(tail: bytes) -> int | None:
    """How many bytes of numbers there are."""
    name = tail.rfind(_RECORD)
    at = tail.rfind(b"PK\x01\x02", 0, name)
    if name < 0 or at < 0 or at + _LISTED.size > len(tail):
        return None
    listed = _LISTED.unpack_from(tail, at)
    method, size, names, extra = listed[4], listed[9], listed[10], listed[11]
    if method != 0:
        return None
    if size == _IN_EXTRA:
        more = tail[at + _LISTED.size + names + 4 :][: min(8, extra)]
        return int.from_bytes(more, "little") if len(more) == 8 else None
    return int(size)
