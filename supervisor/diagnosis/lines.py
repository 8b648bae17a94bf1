"""What stands before and around the words of a log line: labels, times, hosts. Pure text.

LineLabels are srun's (`12: `, with -l), pdsh's and DeepSpeed's (`n7: `), torchrun's (`[rank3]:`,
`[default3]:`), Ray's (`(Worker pid=12) `). Times are those of Python's logging, glog (torch), NCCL,
Slurm, dmesg -T, journalctl and syslog. An offset from UTC is passed over, because most lines tell
the node's wall clock and none.
"""

from __future__ import annotations

import re
from calendar import month_abbr, timegm
from collections.abc import Sequence
from dataclasses import dataclass, replace

MAX_LINE = 4096  # characters of a line that are looked at
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NUMBER = re.compile(r"\s*(\d{1,6}): ?")
_HOST = re.compile(r"([A-Za-z][\w.-]{0,62}|\d{1,3}(?:\.\d{1,3}){3}): ?")
_RANK = re.compile(r"\s*\[?\[?rank ?(\d{1,6})\]?\]?:? ?", re.IGNORECASE)
_LOCAL = re.compile(r"\s*\[(?:default|trainer|worker)[\w|]*?(\d{1,4})\]:? ?")
_RAY = re.compile(r"\s*\(\w+ (?:pid|rank)=\d+[^)]*\) ?")
_NCCL = re.compile(r"(?:^|[\]\s])([A-Za-z][\w.-]{0,62}):(\d{1,8}):(\d{1,8}) \[(\d{1,3})\] ")
_INNER_RANK = re.compile(r"\[(?:PG [^\]]{0,80}?)?Rank (\d{1,6})\]")
_DATE = r"(\d{4})-(\d\d)-(\d\d)[ T_](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?"
_ISO = re.compile(_DATE)
_GLOG = re.compile(r"\b[IWEF](\d{1,2})(\d\d) (\d\d):(\d\d):(\d\d)\.(\d{1,9})")
_CTIME = re.compile(r"\[\w{3} (\w{3})\s+(\d{1,2}) (\d\d):(\d\d):(\d\d) (\d{4})\]")
_SYSLOG = re.compile(r"(\w{3})\s+(\d{1,2}) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))? (\S+) ")
_US = re.compile(r"\[(\d\d)/(\d\d)/(\d{2,4}),? (\d\d):(\d\d):(\d\d)\]")
_MONTHS = {name: number for number, name in enumerate(month_abbr) if name}
# `2026-11-24 10:00:01,123 - root - ERROR - `, `[2026-11-24 10:00:01,123] [ERROR] [f.py:3:f] `,
# `E1124 10:00:01.1 123 file.py:7] `, `[titan] 2026… - root - INFO - `, `ERROR:torch.api:`
_LOGGING = re.compile(
    rf"(?:\[titan\] )?\[?{_DATE}[^\s\]]*\]?:?(?: +(?:-|\||\[\d+\]) *)?"
    r"(?:[\w.]+ - )?(?:\[?(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\]?)?(?::[\w.]+:| - | \| |: )?"
    r"(?: ?\[[\w./-]+:\d+:[\w<>]+\])?\s*"
    r"|\[?[IWEF]\d{3,4} [\d:.]+ (?:\d+ )?[\w./-]+:\d+\] ?(?:\[\w+\] )?"
    r"|(?:DEBUG|INFO|WARNING|ERROR|CRITICAL):[\w.]+:"
)
_DMESG = re.compile(r"\[\s*(\d{1,9}\.\d{1,9})\](?:\[\s*[TC]\d+\])? ?(.*)", re.DOTALL)
_KMSG = re.compile(r"(\d{1,4}),(\d+),(\d+),[^;]{0,40};(.*)", re.DOTALL)
_DMESG_T = re.compile(r"(\[\w{3} \w{3}\s+\d{1,2} [\d:]{8} \d{4}\]) (.*)", re.DOTALL)
_JOURNAL = re.compile(
    r"(?:\w{3}\s+\d{1,2} [\d:.]{8,18}|\d{4}-\d\d-\d\dT[\d:.+Z-]{8,30}) (\S+) kernel: "
    r"(?:\[\s*\d+\.\d+\] )?(.*)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineLabels:
    """How lines of a file begin, as a sample of them shows."""

    numbered: bool = False  # srun -l
    hosted: bool = False  # pdsh, DeepSpeed
    kernel: bool = False  # the lines are a kernel's


@dataclass(frozen=True, slots=True, kw_only=True)
class LineHead:
    """What stood before the words of a line."""

    message: str
    task: int | None = None  # of srun
    rank: int | None = None
    local: int | None = None  # rank on its node
    node: str = ""
    gpu: str = ""


def clean(raw: bytes) -> str:
    """A line as text, without colours, cut to what is looked at."""
    text = raw[: MAX_LINE * 2].decode(errors="replace")
    return _ANSI.sub("", text)[:MAX_LINE].rstrip("\r\n\x00")


def labels(sample: Sequence[str]) -> LineLabels:
    """How the lines of a file begin, from some of them."""
    lines = [line for line in sample if line.strip()]
    if len(lines) < 3:
        return LineLabels(kernel=bool(lines) and all(kernel_line(one) for one in lines))
    hosts = [found[1] for line in lines if (found := _HOST.match(line))]
    many = len(lines) * 0.7
    return LineLabels(
        numbered=sum(1 for line in lines if _NUMBER.match(line)) >= many,
        hosted=len(hosts) >= many
        and len(set(hosts)) <= max(2, len(lines) // 3)
        and not any(one.isupper() or "Error" in one for one in hosts)
        and any(re.search(r"\d", one) for one in hosts),
        kernel=sum(1 for line in lines if kernel_line(line)) >= len(lines) * 0.5,
    )


def head(line: str, how: LineLabels) -> LineHead:
    """Take a line's labels off, and remember what they say."""
    found = LineHead(message=line)
    if how.numbered and (match := _NUMBER.match(line)):
        found = replace(found, task=int(match[1]), message=line[match.end() :])
    elif how.hosted and (match := _HOST.match(line)):
        found = replace(found, node=match[1], message=line[match.end() :])
    for _ in range(3):
        text = found.message
        if match := _RANK.match(text):
            found = replace(found, rank=int(match[1]), message=text[match.end() :])
        elif match := _LOCAL.match(text):
            found = replace(found, local=int(match[1]), message=text[match.end() :])
        elif match := _RAY.match(text):
            found = replace(found, message=text[match.end() :])
        else:
            break
    if match := _NCCL.search(found.message[:160]):
        found = replace(found, node=match[1], gpu=match[4])
    if found.rank is None and (match := _INNER_RANK.search(found.message[:200])):
        found = replace(found, rank=int(match[1]))
    text = found.message
    if match := _LOGGING.match(text):
        text = text[match.end() :]
    return replace(found, message=text.strip())


def time_of(line: str, year: int) -> float | None:
    """The wall clock time that a line tells near its beginning, as if that were UTC's."""
    start = line[:160]
    if match := _ISO.search(start):
        y, mo, d, h, mi, s, frac = match.groups()
        return _seconds(int(y), int(mo), int(d), int(h), int(mi), int(s), frac)
    if match := _GLOG.search(start):
        mo, d, h, mi, s, frac = match.groups()
        return _seconds(year, int(mo), int(d), int(h), int(mi), int(s), frac)
    if match := _CTIME.search(start):
        month = _MONTHS.get(match[1], 0)
        d, h, mi, s, y = match.groups()[1:]
        return _seconds(int(y), month, int(d), int(h), int(mi), int(s), None)
    if (match := _SYSLOG.match(start)) and match[1] in _MONTHS:
        mon, d, h, mi, s, frac, _ = match.groups()
        return _seconds(year, _MONTHS[mon], int(d), int(h), int(mi), int(s), frac)
    if match := _US.search(start):
        mo, d, y, h, mi, s = match.groups()
        full = int(y) + 2000 if len(y) == 2 else int(y)
        return _seconds(full, int(mo), int(d), int(h), int(mi), int(s), None)
    return None


def _seconds(
    y: int, mo: int, d: int, h: int, mi: int, s: int, fraction: str | None
) -> float | None:
    if not (1 <= mo <= 12 and 1 <= d <= 31 and h < 24 and mi < 60 and s < 62 and y < 3000):
        return None
    whole = timegm((y, mo, d, h, mi, s, 0, 0, 0))
    return whole + (float(f"0.{fraction}") if fraction else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRecord:
    """A line of a kernel's log."""

    text: str
    node: str = ""
    uptime: float | None = None  # seconds since boot, where no wall clock is told


def kernel_line(line: str) -> KernelRecord | None:
    """Read a kernel's line in dmesg's, kmsg's, journalctl's or syslog's form; None for another."""
    if match := _JOURNAL.match(line):
        return KernelRecord(text=match[2], node=match[1])
    if match := _KMSG.match(line):
        # Of another facility it is a program that writes through the device.
        if int(match[1]) >> 3:
            return None
        return KernelRecord(text=match[4], uptime=int(match[3]) / 1e6)
    if match := _DMESG_T.match(line):
        return KernelRecord(text=match[2])
    if match := _DMESG.match(line):
        return KernelRecord(text=match[2], uptime=float(match[1]))
    return None


CONTINUED = 6  # lines after its first that are looked at for the rest of a kernel's record
_ESCAPED_END = re.compile(r"\\x0a|#012")


def whole_record(first: str, after: Sequence[bytes]) -> str:
    """A kernel's record of several lines in one piece, its lines apart by newlines.

    dmesg and journalctl indent the lines that go on; /dev/kmsg writes their ends as `\\x0a`
    (Linux, kernel/printk), rsyslog as `#012`.
    """
    parts = [one.strip() for one in _ESCAPED_END.split(first)]
    for raw in after:
        if raw[:1] not in (b" ", b"\t") or not raw.strip():
            break
        parts.append(clean(raw).strip())
    return "\n".join(parts)
