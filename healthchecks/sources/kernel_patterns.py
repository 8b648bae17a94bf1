"""Patterns of trouble in the kernel's log, remembered by the check that looks for them.

One event has many wordings: kernels, drivers and vendors say it each in their own way. They stand
as a table beside each rule, with where each is from.

Users write into that log by the names they give to programs, files, control groups and network
devices. A pattern begins where the line begins, says more than a program's name has room for
(15 bytes) before it leaves anything open, and leaves nothing open before its last fixed words that
another kind of line could fill: tests/unit/test_forged_lines.py tries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from healthchecks.frame.check import Findings, Status, Unknown
from healthchecks.frame.context import Ctx
from healthchecks.sources import kernel_log
from healthchecks.sources.kernel_log import KernelLine
from supervisor.core.setting import About
from supervisor.host.terminal import date_time

WindowH = Annotated[float, About(doc="How long what is over is shown.", unit="h", ge=0)]
BOOTING_S = 300.0  # links come up and go down while drivers load
_MAX_KEPT = 128  # remembered for one check
_MAX_TEXT = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """One way in which a kernel, a driver or a vendor says it."""

    source: str  # where it is from, in words
    substring: str  # every such line contains it, exactly as written: the log is searched for it
    regex: str  # of the line from its beginning; its group 1 is the device
    example: str  # a line as the kernel writes it


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelLogPattern:
    """A kind of event, in all its wordings."""

    name: str
    wordings: tuple[Wording, ...]
    status: Status
    what: str  # what it means, in words
    fix: str
    until_boot: bool = False  # until the node boots; others are over after the check's window
    while_booting: bool = True  # whether a line of the first minutes of a boot says anything
    shared: str = ""  # what its device is that other nodes have too, as "ceph server"
    cleared_by: str = ""  # a substring of a later line that takes it back …
    cleared_regex: str = ""  # … and that line from its beginning; group 1 is the device again

    @property
    def example(self) -> str:
        return self.wordings[0].example


def report_matches(
    ctx: Ctx,
    patterns: Sequence[KernelLogPattern],
    window_s: float,
    found: Findings,
    named: Callable[[str], str] = str,
    joined: Callable[[list[KernelLine]], list[KernelLine]] = list,
) -> None:
    """Take in the new lines, and report what matched and is not over. `named` names a device;
    `joined` makes one line of those that say one thing together.

    A log that can't be read is reported as UNKNOWN, beside what is remembered.
    """
    seen: dict[str, list[float | str]] = dict(ctx.memory.get("signs") or {})
    try:
        _take(ctx, patterns, seen, joined)
    except Unknown as why:
        found.unmeasured(why, expected="a kernel log that can be read")
    by_name = {pattern.name: pattern for pattern in patterns}
    for key, (count, first, last, text) in [*seen.items()]:
        pattern = by_name.get(key.partition(" ")[0])
        if pattern is None or (not pattern.until_boot and float(last) < ctx.now - window_s):
            del seen[key]
            continue
        found.metric(pattern.name, float(count) + _metric(found, pattern.name))
        times = f"{int(count)} times, last " if float(count) > 1 else ""
        device = key.partition(" ")[2]
        found.add(
            pattern.status,
            f"{pattern.what} ({times}{date_time(float(last))}: {text})",
            expected="none in the kernel's log",
            fix=pattern.fix,
            device=named(device) if device else "",
            shared=f"{pattern.shared} {device}".strip() if pattern.shared else "",
        )
        seen[key] = [count, first, last, text]
    kept = sorted(seen.items(), key=lambda row: float(row[1][2]))[-_MAX_KEPT:]
    ctx.memory.put("signs", dict(kept))


def _metric(found: Findings, name: str) -> float:
    return found.metrics[name].value if name in found.metrics else 0.0


def _take(
    ctx: Ctx,
    patterns: Sequence[KernelLogPattern],
    seen: dict[str, list[float | str]],
    joined: Callable[[list[KernelLine]], list[KernelLine]],
) -> None:
    wanted = [w.substring for p in patterns for w in p.wordings]
    wanted += [p.cleared_by for p in patterns if p.cleared_by]
    lines = joined(kernel_log.new_lines(ctx, *dict.fromkeys(wanted)))
    if not lines:
        return
    booted = ctx.now - float(ctx.text("proc/uptime").split()[0])
    lines.sort(key=lambda line: line.last)
    for line in lines:
        for pattern in patterns:
            device = device_in(pattern, line.text)
            early = not pattern.while_booting and line.last < booted + BOOTING_S
            if device is not None and not early:
                key = f"{pattern.name} {device}".strip()
                count, first, _, _ = seen.get(key, [0, line.at, 0.0, ""])
                text = line.text.splitlines()[0][:_MAX_TEXT]
                seen[key] = [float(count) + line.count, first, line.last, text]
                break
        _undo(patterns, line, seen)


def _undo(
    patterns: Sequence[KernelLogPattern],
    line: KernelLine,
    seen: dict[str, list[float | str]],
) -> None:
    for key in [*seen]:
        name, _, device = key.partition(" ")
        pattern = next((p for p in patterns if p.name == name), None)
        if pattern is None or not pattern.cleared_by:
            continue
        match = re.match(pattern.cleared_regex, line.text)
        if match is not None and match[1] == device and float(seen[key][2]) < line.last:
            del seen[key]


def device_in(pattern: KernelLogPattern, text: str) -> str | None:
    """None where the line does not match; empty where it names no device."""
    for wording in pattern.wordings:
        if wording.substring in text and (match := re.match(wording.regex, text)):
            return (match[1] or "") if match.re.groups else ""
    return None
