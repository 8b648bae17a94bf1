"""What is done to checkpoints that leave the lineage, and to the place that they are saved in.

Runs in the expendable children of `supervisor.storage`; touches nothing but directories that are
called HOME/aNNNN/step-N, HOME being `checkpoints.dir`.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

TRASH = ".superv-trash"
QUARANTINE = "quarantine"
_STEP = re.compile(r"step-(0|[1-9][0-9]*)")
_ATTEMPT = re.compile(r"a[0-9]{4,}")


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """The child's: `answer` is a problem in one line, empty where all went well.

    For the command `home` it is [problem, number of the first attempt that has no directory yet].
    """
    command, path = question["command"], question["path"]
    try:
        if command == "home":
            return {"answer": [home_problem(path), first_free_attempt(path)]}
        {"discard": discard, "quarantine": quarantine}[command](path, question["home"])
    except OSError as error:
        problem = f"{error.filename or path}: {error.strerror}"
        return {"answer": [problem, 0] if command == "home" else problem}
    return {"answer": ""}


def _owned(path: str, home: str) -> Path:
    """The checkpoint, a real directory in a real directory of an attempt. Raises OSError."""
    there = Path(path)
    attempt = there.parent
    usual = _STEP.fullmatch(there.name) and _ATTEMPT.fullmatch(attempt.name)
    if not usual or attempt.parent != Path(home):
        raise OSError(0, f"is not {home}/aNNNN/step-N: not touched", path)
    for folder in (attempt, there):
        if folder.is_symlink():
            raise OSError(0, "is a link: not touched", str(folder))
    return there


def discard(path: str, home: str) -> None:
    """Delete an attempt's checkpoint. Half deleted it is out of sight, so it never looks whole.

    Done again, it goes on where it was. Raises OSError.
    """
    there = _owned(path, home)
    trash = there.parent / TRASH
    try:
        trash.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        return  # the whole attempt is gone
    out = trash / there.name
    if out.exists():
        shutil.rmtree(out)
    with contextlib.suppress(FileNotFoundError):
        there.rename(out)
        shutil.rmtree(out)
    trash.rmdir()


def quarantined_path(path: str, home: str) -> str:
    """Where quarantine puts an attempt's checkpoint."""
    there = Path(path)
    return str(Path(home, QUARANTINE, there.parent.name, there.name))


def quarantine(path: str, home: str) -> None:
    """Move an attempt's checkpoint to HOME/quarantine/aNNNN/step-N by one rename. Raises OSError.

    TorchTitan looks into one folder and not below it, so nothing resumes from there by itself.
    """
    there = _owned(path, home)
    target = Path(quarantined_path(path, home))
    if not there.exists() and target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    there.rename(target)


def home_problem(directory: str) -> str:
    """Why nothing can be saved in there, or an empty string. Leaves nothing behind."""
    place = Path(directory)
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"{place} is not a directory"
    try:
        with tempfile.TemporaryFile(dir=place):  # access(2) does not know what a server allows
            return ""
    except OSError as error:
        return f"{place} can't be written: {error.strerror}"


def first_free_attempt(directory: str) -> int:
    """The number after the highest attempt that has a directory. Raises OSError."""
    there = Path(directory)
    names = [path.name for path in there.iterdir()] if there.is_dir() else []
    return max((int(name[1:]) for name in names if _ATTEMPT.fullmatch(name)), default=0) + 1
