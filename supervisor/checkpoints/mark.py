"""A run's mark in checkpoints.dir: whose attempts are saved there now.

It lies beside the attempts' folders, so every spelling of the directory leads to it, and it says
the same to other users and machines. Runs in the children of `supervisor.checkpoints.storage`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from supervisor.checkpoints import folders
from supervisor.checkpoints.folders import Folder, RefusedError

NAME = ".superv-run"
LONGEST = 4096  # bytes

Mark = dict[str, Any]  # run, run_id, host, folder (of the run there), since


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """The child's: for `claim` the mark of another run, or null; for `release` null."""
    path = question["path"]
    try:
        if question["command"] == "claim":
            return {"answer": claim(path, question["mark"], question["instead"])}
        release(path, question["run_id"])
    except RefusedError as error:
        return {"error": str(error)}
    return {"answer": None}


def claim(directory: str, mine: Mark, instead: str = "") -> Mark | None:
    """Put the mark there; returns that of another run, which stays unless it is `instead`'s.

    Of several who claim at one moment one succeeds. Raises OSError, RefusedError.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    with folders.open_home(directory) as home:
        theirs = _read(home)
        if theirs is not None and instead and theirs.get("run_id") == instead:
            away = f"{NAME}.{secrets.token_hex(4)}"
            with contextlib.suppress(FileNotFoundError):  # somebody else was faster
                os.rename(NAME, away, src_dir_fd=home.fd, dst_dir_fd=home.fd)
                os.unlink(away, dir_fd=home.fd)
        part = f"{NAME}.{secrets.token_hex(4)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(part, flags, 0o644, dir_fd=home.fd), "w") as file:
            file.write(json.dumps(mine))
        try:
            os.link(part, NAME, src_dir_fd=home.fd, dst_dir_fd=home.fd, follow_symlinks=False)
        except FileExistsError:
            theirs = _read(home) or {}
            return None if theirs.get("run_id") == mine["run_id"] else theirs
        finally:
            os.unlink(part, dir_fd=home.fd)
    return None


def release(directory: str, run_id: str) -> None:
    """Take the run's mark away; another one stays. Raises OSError, RefusedError."""
    with contextlib.suppress(FileNotFoundError), folders.open_home(directory) as home:
        if (_read(home) or {}).get("run_id") == run_id:
            os.unlink(NAME, dir_fd=home.fd)


def _read(home: Folder) -> Mark | None:
    """None where there is none. What is no mark says nothing. Raises OSError, RefusedError."""
    try:
        fd = home.open_file(NAME)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        data = file.read(LONGEST)
    with contextlib.suppress(ValueError):
        found = json.loads(data)
        if isinstance(found, dict):
            return found
    return {}
