"""What is done to checkpoints that leave the lineage, and to the place that they are saved in.

Runs in the expendable children of `supervisor.checkpoints.storage`; touches nothing but directories
that are called HOME/aNNNN/step-N, HOME being `checkpoints.dir`, through open descriptors
(`supervisor.checkpoints.folders`).
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from supervisor.checkpoints import folders
from supervisor.checkpoints.folders import RefusedError
from supervisor.core.names import QUARANTINE, TRASH, attempt_of, first_free, step_of


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """The child's: `answer` is a problem in one line, empty where all went well.

    For the command `home` it is [problem, number of the first attempt that has no directory yet].
    """
    command, path = question["command"], question["path"]
    try:
        if command == "home":
            return {"answer": [home_problem(path), first_free_attempt(path)]}
        {"discard": discard, "quarantine": quarantine}[command](path, question["home"])
    except (OSError, RefusedError) as error:
        problem = str(error)
        if isinstance(error, OSError):
            where = str(error.filename or "")
            problem = f"{where if where.startswith('/') else path}: {error.strerror}"
        return {"answer": [problem, 0] if command == "home" else problem}
    return {"answer": ""}


def _names(path: str, home: str) -> tuple[str, str]:
    """The names of the attempt's and the checkpoint's folder. Raises RefusedError."""
    there = Path(path)
    attempt, name = there.parent.name, there.name
    usual = step_of(name) is not None and attempt_of(attempt) is not None
    if not usual or there.parent.parent != Path(home):
        raise RefusedError(f"{path}: is not {home}/aNNNN/step-N: not touched")
    return attempt, name


def discard(path: str, home: str) -> None:
    """Delete an attempt's checkpoint. Half deleted it is out of sight, so it never looks whole.

    Done again, it goes on where it was. Raises OSError, RefusedError.
    """
    number, name = _names(path, home)
    with contextlib.ExitStack() as opened:
        top = opened.enter_context(folders.open_home(home))
        try:
            attempt = opened.enter_context(top.enter(number))
        except FileNotFoundError:
            return  # the whole attempt is gone
        trash = opened.enter_context(attempt.make(TRASH, 0o700))
        with contextlib.suppress(FileNotFoundError):  # else it was cut short
            folders.remove(name, trash)
        with contextlib.suppress(FileNotFoundError), folders.move(name, attempt, trash):
            folders.remove(name, trash)
        os.rmdir(TRASH, dir_fd=attempt.fd)


def quarantined_path(path: str, home: str) -> str:
    """Where quarantine puts an attempt's checkpoint."""
    there = Path(path)
    return str(Path(home, QUARANTINE, there.parent.name, there.name))


def quarantine(path: str, home: str) -> None:
    """Move an attempt's checkpoint to HOME/quarantine/aNNNN/step-N by one rename.

    TorchTitan looks into one folder and not below it, so nothing resumes from there by itself.
    Done again, it is no error. Raises OSError, RefusedError.
    """
    number, name = _names(path, home)
    with contextlib.ExitStack() as opened:
        top = opened.enter_context(folders.open_home(home))
        there = opened.enter_context(top.make(QUARANTINE))
        place = opened.enter_context(there.make(number))
        try:
            attempt = opened.enter_context(top.enter(number))
            opened.enter_context(folders.move(name, attempt, place))
        except FileNotFoundError:
            opened.enter_context(place.enter(name))  # else it is nowhere


def home_problem(directory: str) -> str:
    """Why nothing can be saved in there, or should be; else an empty string. Leaves nothing behind.

    Raises RefusedError where another user owns it.
    """
    place = Path(directory)
    while not place.exists() and place != place.parent:
        place = place.parent
    there = place == Path(directory)
    wanted = "" if there else f"{directory} can't be made: "
    if not place.is_dir():
        return f"{wanted}{place} is not a directory"
    try:
        with tempfile.TemporaryFile(dir=place):  # access(2) does not know what a server allows
            pass
    except OSError as error:
        return f"{wanted}{place} can't be written: {error.strerror}"
    if there:
        folders.open_home(directory).close()
    mode = place.stat().st_mode
    if mode & stat.S_IWOTH and (there or not mode & stat.S_ISVTX):
        return (
            f"{place} can be written by every user, and ranks run what a checkpoint's .metadata "
            f"says: chmod o-w {place}, or choose a folder of your own"
        )
    return ""


def first_free_attempt(directory: str) -> int:
    """The number after the highest attempt that has a directory. Raises OSError."""
    place = Path(directory)
    return first_free(path.name for path in (place.iterdir() if place.is_dir() else ()))
