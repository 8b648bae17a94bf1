"""The BMC's event log: what the hardware itself has noted."""

from __future__ import annotations

import re
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from supervisor.core.setting import About

# What an event means: words of the event, and types of sensor (any where empty). The first row that
# fits counts; an event that fits none is none of superv's business. Words are ipmitool's
# (ipmi_sel.h, its tables of event types), after IPMI 2.0, tables 42-2 and 42-3.
_FINE = (
    "Transition to OK|Fully Redundant|Presence [Dd]etected|Performance Met|Limit Not Exceeded|"
    "State Deasserted|Predictive Failure Deasserted|Device (?:Present|Enabled)|Informational|"
    "Monitor$|Log area reset|Transition to (?:Running|On Line|Idle|Active|Busy|In Test)"
)
_MEANINGS: tuple[tuple[Status, str, str], ...] = (
    (Status.OK, "", _FINE),
    (
        Status.FAIL,
        "Memory",
        "Uncorrectable ECC|Parity|Memory Device Disabled|Transition to Non-recoverable",
    ),
    (
        Status.FAIL,
        "Processor|Chip Set",
        "IERR|Thermal Trip|FRB\\d|Uncorrectable|Configuration Error|"
        "Transition to (?:Critical|Non-recoverable)",
    ),
    (
        Status.FAIL,
        "Critical Interrupt",
        "Bus Uncorrectable error|Bus Fatal Error|Fatal NMI|PCI [PS]ERR|I/O Channel check NMI",
    ),
    (Status.FAIL, "System Event|System Firmware", "Undetermined system hardware|Unrecoverable"),
    (Status.FAIL, "Voltage", "Non-recoverable"),
    (Status.WARN, "Watchdog", "Timer expired|Hard reset|Power down|Power cycle"),
    (Status.WARN, "Battery", "Low|Failed"),
    (Status.WARN, "Memory", "Configuration Error"),
    (Status.WARN, "Event Logging Disabled", "Log full"),  # it notes no error any more
    (
        Status.WARN,
        "",
        "Correctable|Predictive [Ff]ailure|Failure detected|AC lost|AC out-of-range|Config Error|"
        "Power Supply Inactive|Throttled|Redundancy (?:Lost|Degraded)|Non-Redundant|"
        "(?:Upper|Lower) (?:Non-critical|Critical|Non-recoverable)|Limit Exceeded|"
        "Transition to (?:Non-critical|Critical|Non-recoverable|Degraded|Off Line|Power Off)|"
        "Drive Fault|In (?:Critical|Failed) Array|Rebuild Aborted|Bus (?:Timeout|Degraded)|NMI|"
        "Critical Overtemperature|Memory Scrub Failed|Performance Lags|Run-time critical stop|"
        "Device (?:Absent|Disabled)|Install Error|Fault Status|power control failure|power down",
    ),
)
# As the locale has them; 1.8.19 says them so (`%x`), older versions in the first form alone.
_DATES = ("%m/%d/%Y", "%m/%d/%y", "%Y-%m-%d", "%d.%m.%Y", "%d.%m.%y")
_TIMES = ("%H:%M:%S", "%I:%M:%S %p")
_NO_CLOCK = "Pre-Init"  # before the BMC had a clock
_PANIC = "Linux kernel panic"


@check(
    "ipmi.sel",
    tags={"deep"},
    resource="command",
    deadline_s=30.0,
    untested="the parser was built against ipmitool 1.8's source and output, without a BMC.",
)
def ipmi_sel(
    ctx: Ctx,
    *,
    window_h: Annotated[float, About(doc="How old an entry may be.", unit="h", ge=0)] = 168.0,
) -> Result:
    """The BMC's event log has no new hardware error.

    `ipmitool sel elist`; uncorrectable errors are FAIL, power supplies, fans and temperatures WARN.
    A record that can't be read is UNKNOWN. Virtual machines have no BMC.
    """
    import shutil

    if not any(name.startswith("ipmi") for name in ctx.names("dev")):
        raise Skip("no BMC: there is no /dev/ipmi0")
    if shutil.which("ipmitool") is None:
        raise Skip("ipmitool is not installed")
    done = ctx.command("ipmitool", "sel", "elist", deadline_s=25.0)
    if done.rc != 0:
        raise Unknown(done.why())
    found = Findings()
    entries = 0
    since = max(ctx.now - window_h * 3600, ctx.repaired)
    lines = [*filter(None, map(str.strip, done.out.splitlines()))]
    for line in _new_panics(ctx, lines, since):
        text = line.rpartition("|")[2].strip()
        found.warn(text, expected="no event", fix="look for a crash dump of that time")
    for line in lines:
        parts = [part.strip() for part in line.split("|")]
        if _PANIC in line:
            continue
        if len(parts) < 6 or _NO_CLOCK in parts[1]:
            if not _of_a_vendor(parts) and line != "SEL has no entries":
                found.unknown(f"a record that can't be read: {line[:80]}")
            continue
        at = when(parts[1], parts[2])
        if at is None:
            found.unknown(f"a record whose time can't be read: {line[:80]}")
        elif at >= since and parts[5].startswith("Asserted"):
            entries += 1
            _judge(found, *parts[1:5])
    return found.result(f"{entries} events in {window_h:g} h, none of them an error")


def _new_panics(ctx: Ctx, lines: list[str], since: float) -> list[str]:
    """Crashes of Linux that may be no older: their records have no time (ipmitool, type 0xf0).

    What stands before a record that is older is older itself; what the first look after a repair
    finds was there before it.
    """
    found: list[str] = []
    for line in lines:
        if _PANIC in line:
            found.append(line)
            continue
        parts = [part.strip() for part in line.split("|")]
        at = when(parts[1], parts[2]) if len(parts) >= 6 else None
        if at is not None and at < since:
            found.clear()
    if ctx.repaired and ctx.memory.get("panics") is None:
        ctx.memory.put("panics", found, lasting=True)
    return [line for line in found if line not in (ctx.memory.get("panics") or [])]


def _of_a_vendor(parts: list[str]) -> bool:
    """What the record's maker alone can read, or what is older than the clock."""
    return any(part.startswith("OEM record") for part in parts) or _NO_CLOCK in " ".join(parts)


def when(date: str, time_of_day: str) -> float | None:
    """Seconds since the epoch; None where it can't be read. UTC where it says so, else local."""
    import calendar
    import time

    clock, _, zone = time_of_day.partition(" ")
    if zone[:2] in ("AM", "PM"):
        clock, zone = f"{clock} {zone[:2]}", zone[3:]
    for date_form in _DATES:
        for time_form in _TIMES:
            try:
                read = time.strptime(f"{date} {clock}", f"{date_form} {time_form}")
            except ValueError:
                continue
            utc = zone.strip() in ("UTC", "GMT", "Z")
            return float(calendar.timegm(read) if utc else time.mktime(read))
    return None


def _judge(found: Findings, date: str, time_of_day: str, sensor: str, event: str) -> None:
    text = f"{sensor}: {event} ({date} {time_of_day})"
    fitting = (m for m in _MEANINGS if re.match(m[1], sensor) and re.search(m[2], event))
    status = next(fitting, _MEANINGS[0])[0]
    if status is Status.FAIL:
        found.fail(
            text,
            expected="no uncorrectable error",
            fix="drain the node and have the part named here looked at; once it is repaired: "
            "superv accept, which heeds newer entries alone",
        )
    elif status is Status.WARN:
        found.warn(text, expected="no event", fix="have the part named here looked at")
