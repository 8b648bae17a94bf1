"""Signs of trouble in the kernel's log, remembered by the check that looks for them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from healthchecks import kernel_log
from healthchecks.check import Findings, Status, Unknown
from healthchecks.context import Ctx

_MOST = 128  # remembered for one check
_MOST_TEXT = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """A kind of line."""

    name: str
    needle: str  # every such line contains it, exactly as written
    pattern: str = ""  # where the needle does not suffice; its group 1 is the device
    status: Status
    what: str  # what it means, in words
    fix: str
    lasts: bool = False  # until the node boots; others are over after the check's window
    undone: str = ""  # a later line that takes it back; with group 1 only for that device


def watch(
    ctx: Ctx,
    signs: Sequence[Sign],
    window_s: float,
    found: Findings,
    named: Callable[[str], str] = str,
) -> None:
    """Take in the new lines, and report all signs that are not over. `named` names a device.

    A log that can't be read is reported as UNKNOWN, beside what is remembered.
    """
    seen: dict[str, list[float | str]] = dict(ctx.memory.get("signs") or {})
    try:
        _take(ctx, signs, seen)
    except Unknown as why:
        found.unknown(str(why), expected="a kernel log that can be read")
    by_name = {sign.name: sign for sign in signs}
    for key, (count, first, last, text) in [*seen.items()]:
        sign = by_name.get(key.partition(" ")[0])
        if sign is None or (not sign.lasts and float(last) < ctx.now - window_s):
            del seen[key]
            continue
        found.metric(sign.name, float(count) + _metric(found, sign.name))
        times = f"{int(count)} times, last " if float(count) > 1 else ""
        device = key.partition(" ")[2]
        found.add(
            sign.status,
            f"{sign.what} ({times}{when(float(last))}: {text})",
            expected="none in the kernel's log",
            fix=sign.fix,
            device=named(device) if device else "",
        )
        seen[key] = [count, first, last, text]
    kept = sorted(seen.items(), key=lambda row: float(row[1][2]))[-_MOST:]
    ctx.memory.put("signs", dict(kept))


def _metric(found: Findings, name: str) -> float:
    return found.metrics[name].value if name in found.metrics else 0.0


def _take(ctx: Ctx, signs: Sequence[Sign], seen: dict[str, list[float | str]]) -> None:
    needles = [s.needle for s in signs]
    lines = kernel_log.new_lines(ctx, *needles, *(s.undone for s in signs if s.undone))
    lines.sort(key=lambda line: line.last)
    for line in lines:
        for sign in signs:
            device = _device(sign, line.text)
            if device is not None:
                key = f"{sign.name} {device}".strip()
                count, first, _, _ = seen.get(key, [0, line.at, 0.0, ""])
                text = line.text.splitlines()[0][:_MOST_TEXT]
                seen[key] = [float(count) + line.count, first, line.last, text]
                break
        _undo(signs, line, seen)


def _undo(signs: Sequence[Sign], line: kernel_log.Line, seen: dict[str, list[float | str]]) -> None:
    for key in [*seen]:
        name, _, device = key.partition(" ")
        sign = next((s for s in signs if s.name == name), None)
        if sign is None or not sign.undone or sign.undone not in line.text:
            continue
        if device in line.text and float(seen[key][2]) < line.last:
            del seen[key]


def _device(sign: Sign, text: str) -> str | None:
    """None where the line is no such sign; empty where it names no device."""
    if sign.needle not in text:
        return None
    if not sign.pattern:
        return ""
    match = re.search(sign.pattern, text)
    if match is None:
        return None
    return (match[1] or "") if match.re.groups else ""


def when(at: float) -> str:
    """Local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
