"""How the rows of the corpus of sick nodes (sick.py) are written."""

from __future__ import annotations

from typing import Any

from checks import Case, Change, both, nothing, wrote
from healthy import IB, logged, says

from healthchecks.frame.check import Status
from tests.hardware.tree import GPU_BDFS

WARN, FAIL = Status.WARN, Status.FAIL
GPU = GPU_BDFS[3].rpartition(".")[0]
MINUTE = [(60.0, nothing)]
Row = tuple[Status, str, str, Change]  # status, a piece of what is seen, where it is from, change


def rows(check: str, *found: Row, **more: Any) -> list[Case]:
    """Cases that differ in what is done to the node."""
    return [
        Case(check=check, name=source, status=status, seen=seen, change=change, **more)
        for status, seen, source, change in found
    ]


def lines(check: str, *found: tuple[Status, str, str, str], **more: Any) -> list[Case]:
    """Cases of one line of the kernel's log each."""
    return rows(check, *((st, seen, where, logged(x)) for st, seen, where, x in found), **more)


def nvml(check: str, *found: tuple[Status, str, str, str], **more: Any) -> list[Case]:
    """Cases of what NVML answers."""
    return rows(check, *((st, seen, where, says(x)) for st, seen, where, x in found), **more)


def lasts(check: str, *found: Row, **more: Any) -> list[Case]:
    """Cases that a look a minute ago found too."""
    return [
        Case(
            check=check,
            name=source,
            status=status,
            seen=seen,
            earlier=[(60.0, change)],
            **more,
        )
        for status, seen, source, change in found
    ]


def tool(
    check: str,
    name: str,
    *found: tuple[Status, str, str, str],
    change: Change = nothing,
    **more: Any,
) -> list[Case]:
    """Cases of what a program prints."""
    return [
        Case(
            check=check,
            name=source,
            status=status,
            seen=seen,
            change=change,
            programs={name: text},
            **more,
        )
        for status, seen, source, text in found
    ]


def at(device: str, **files: str) -> Change:
    return both(*(wrote(f"{IB}/{device}/ports/1/{name}", text) for name, text in files.items()))


def grew(device: str, counter: str, by: int) -> Change:
    return lambda tree: tree.add(f"{IB}/{device}/ports/1/{counter}", by)


ROUTES = "Iface\tDestination\neth0\t00000000"


def asleep(name: str) -> Change:
    """A process in uninterruptible sleep."""
    numbers = " ".join(["0"] * 49)
    return both(
        wrote("proc/990/stat", f"990 ({name}) D {numbers}"),
        wrote("proc/990/status", f"Name:\t{name}\nvoluntary_ctxt_switches:\t7"),
        wrote("proc/990/wchan", "rpc_wait_bit_killable"),
    )


def mounted(old: str, new: str) -> Change:
    return lambda tree: tree.change("proc/self/mountinfo", old, new)


def xid(code: int, text: str) -> str:
    return f"NVRM: Xid (PCI:{GPU}): {code}, {text}"
