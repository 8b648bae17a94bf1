"""What a check reaches, by its code: its own names, and those of every function of ours it calls.

For tests that hold a kind of check to something: a check that is new is found by what it does, and
not by a list that somebody forgot to extend.
"""

from __future__ import annotations

import dis
import importlib
import re
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

OURS = "healthchecks."
# Logs, whose lines stay where they are whatever was repaired: files, and the programs that print
# them.
LOGS = re.compile(
    r"/?(?:dev/kmsg|proc/kmsg|var/log/\S+|sys/fs/pstore.*|dev/mcelog)"
    r"|dmesg|journalctl|ipmitool|ipmi-sel|ipmiutil|racadm|redfishtool|mcelog|ras-mc-ctl"
)


def reads_a_log(run: Callable[..., Any]) -> bool:
    return any(LOGS.fullmatch(text) for text in texts(run))


def texts(run: Callable[..., Any]) -> set[str]:
    """The strings that a function may come to use, in all the code of ours that it reaches."""
    found: set[str] = set()
    known: set[int] = set()
    own = run.__module__
    waiting: list[Any] = [run]
    while waiting:
        thing = waiting.pop()
        if id(thing) in known:
            continue
        known.add(id(thing))
        if isinstance(thing, str):
            found.add(thing)
        elif isinstance(thing, (tuple, list, set, frozenset)):
            waiting += thing
        elif isinstance(thing, dict):
            waiting += [*thing, *thing.values()]
        elif isinstance(thing, (staticmethod, classmethod)):
            waiting.append(thing.__func__)
        elif isinstance(thing, property):
            waiting.append(thing.fget)
        elif isinstance(thing, type) and thing.__module__.startswith(OURS):
            waiting += vars(thing).values()
        elif isinstance(thing, FunctionType) and thing.__module__.startswith((OURS, own)):
            waiting += _used(thing.__code__, thing.__globals__)
            waiting += [cell.cell_contents for cell in thing.__closure__ or ()]
    return found


def _used(code: CodeType, names: dict[str, Any]) -> Iterator[Any]:
    """Constants of a code, what its names stand for, and what it imports when it runs."""
    module: Any = None
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            module = importlib.import_module(step.argval)
        elif step.opname == "IMPORT_FROM":
            yield getattr(module, step.argval, None)
        elif step.opname == "LOAD_GLOBAL":
            thing = names.get(step.argval)
            if isinstance(thing, type(importlib)) and thing.__name__.startswith(OURS):
                yield from vars(thing).values()
            else:
                yield thing
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _used(constant, names)
        else:
            yield constant
