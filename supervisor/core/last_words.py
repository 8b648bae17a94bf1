"""What a rank said when it ended: its error, and whether that only says that another went first.

Pure text. Which wordings are a consequence of another's end supervisor/signatures knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from supervisor.core.step_lines import STEP
from supervisor.signatures import Role, load

SHOWN = 200  # characters of it

# What stands before a line: `[rank3]:`, `3: `, a time.
_LABEL = re.compile(
    r"^(?:\s*(?:\[(?:default|rank) ?\d+\]:?|\[?\d{4}-\d\d-\d\d[T ][\d:.,]+\]?|\d{1,5}:(?= )))+\s*"
)
_EXCEPTION = re.compile(
    r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Failure|Timeout)\b(?::\s|\s*$)"
    r"|AssertionError|SystemExit\b"
)
_FATAL = re.compile(
    r"Fatal Python error|[Ss]egmentation fault|Bus error|Illegal instruction|CUDA (?:error|out of)|"
    r"(?i:\b(?:fatal|error|panic|abort(?:ed|ing))\b(?=[\]:\s]))|NCCL WARN|command not found|"
    r"No space left|Disk quota exceeded|Permission denied|No such file or directory|"
    r"Read-only file system|Killed\b|out of memory|can't open file|No module named|^superv: "
)
_STEP = re.compile(STEP)


def unlabelled(line: str) -> str:
    """A line without what labels stand before it."""
    return _LABEL.sub("", line).strip()


def is_cascade(line: str) -> bool:
    """Whether a line says no more than that another rank or node has gone."""
    signature, _ = load().find(unlabelled(line))
    return signature is not None and signature.role is Role.CASCADE


def last_words(tail: Sequence[str]) -> str:
    """The line of a rank's last ones that says why it ended; empty where none does.

    An exception goes before other errors, and either before what only follows from another's end.
    """
    return unlabelled(telling(tail))[:SHOWN]


def telling(tail: Sequence[str]) -> str:
    """The same line as it was written, with what stands before it."""
    bare = [unlabelled(line) for line in tail]
    lines = list(zip(tail, bare, strict=True))
    found = [one for one in lines if _EXCEPTION.match(one[1])]
    found = [one for one in lines if _FATAL.search(one[1]) and one not in found] + found
    own = [one for one in found if not is_cascade(one[1])]
    told = own or found or [one for one in lines if is_cascade(one[1])]
    return told[-1][0] if told else ""


def last_line(tail: Sequence[str]) -> str:
    """A rank's last line; empty where it tells a step, which says nothing of an end."""
    line = unlabelled(tail[-1]) if tail else ""
    return "" if _STEP.search(line) else line[:SHOWN]


def same_words(one: str, other: str) -> bool:
    """Whether two lines are one message, but for numbers and addresses in them."""
    return bool(one) and _shape(one) == _shape(other)


def _shape(line: str) -> str:
    return re.sub(r"0x[0-9a-f]+|\d+", "0", line)
