"""What root may load, run or read as its configuration: only what nobody else can change.

A path is walked component by component, links included, as the kernel would. One that another
user owns, or that others may write to, ends it: whoever can rename a folder can put his own in its
place. A group's right to write counts as others', but for the group root.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT_PATH = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
_MAX_LINKS = 40  # as the kernel: more is a loop
_LIBRARY_PATHS = ("LD_LIBRARY_PATH", "LD_PRELOAD", "LD_AUDIT")


def problem(path: str | Path, *, sticky: bool = False, as_root: bool = False) -> str:
    """Why this user may not trust what lies at an absolute path; empty where he may.

    Only root is asked to be careful, or for root's sake whoever asks `as_root`. What is not there
    (yet) is nobody's: the first folder that is missing ends the walk. With `sticky` a sticky folder
    of root's, as /tmp, does no harm: what root owns in it can't be renamed by others. That is for
    folders that root made there itself: what lies in /tmp and has no folder of its own is never run
    or loaded (`code`).
    """
    if os.geteuid() != 0 and not as_root:
        return ""
    return walk(path, lambda at, found, _: _changeable(at, found, sticky=sticky))


def walk(path: str | Path, judge: Callable[[Path, os.stat_result, bool], str]) -> str:
    """What `judge` has against the first part of a path that it objects to; empty where nothing.

    It is given where the kernel is on its way, that part's status (a link's own), and whether it
    is the last one. What is not there (yet) ends the walk.
    """
    at, links = Path("/"), 0
    todo = [*reversed((Path.cwd() / path).parts[1:])]
    if why := judge(at, at.lstat(), not todo):
        return why
    while todo:
        part = todo.pop()
        if part == "..":
            at = at.parent
            continue
        here = at / part
        try:
            found = here.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except OSError as error:
            return f"{here} can't be looked at ({error.strerror})"
        if why := judge(here, found, not todo):
            return why
        if not stat.S_ISLNK(found.st_mode):
            at = here
            continue
        links += 1
        if links > _MAX_LINKS:
            return f"{here} is one of too many links"
        target = here.readlink()
        todo += reversed([part for part in target.parts if part != "/"])
        if target.is_absolute():
            at = Path("/")
    return ""


def _changeable(path: Path, found: os.stat_result, *, sticky: bool) -> str:
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != 0:
        return (
            f"{path} belongs to user {found.st_uid} (mode {mode:04o}): root uses only what is "
            f"root's; chown root {path}, or put it where only root may write"
        )
    if stat.S_ISLNK(found.st_mode):
        return ""  # its mode says nothing
    if mode & stat.S_IWOTH or (mode & stat.S_IWGRP and found.st_gid != 0):
        if sticky and mode & stat.S_ISVTX and stat.S_ISDIR(found.st_mode):
            return ""
        return (
            f"{path} is root's and others may write to it (mode {mode:04o}, group {found.st_gid}): "
            f"chmod go-w {path}, or put it where only root may write"
        )
    return ""


def code(path: str | Path) -> str:
    """As `problem`, of what would be run or loaded: never out of a folder that others write to."""
    if why := problem(path, sticky=True):
        return why
    if os.geteuid() != 0:
        return ""
    places = {Path(path).parent, Path(path).resolve().parent}
    changeable = (_changeable(f, f.stat(), sticky=False) for f in places if f.is_dir())
    return next((why for why in changeable if why), "")


def folders(env: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The folders of PATH that root runs programs from, and what was left out and why."""
    kept, left_out = [], []
    for folder in env.get("PATH", "").split(":"):
        why = code(f"{folder}/x") if folder.startswith("/") else f"PATH has {folder or '.'!r}"
        if why and folder:
            left_out.append(f"{folder} is left out of PATH: {why}")
        elif folder:
            kept.append(folder)
    return kept, left_out


def search_path(env: Mapping[str, str]) -> tuple[str, list[str]]:
    """PATH for what root starts, and what was left out of it and why.

    The usual folders come last where they are missing: Slurm's Prolog has no PATH at all.
    """
    kept, left_out = folders(env)
    kept += [folder for folder in ROOT_PATH if folder not in kept and not problem(folder)]
    return ":".join(kept), left_out


def program(name: str) -> str:
    """Why a program may not be run: found on PATH where it has no folder. Empty where it may."""
    import shutil

    found = name if "/" in name else shutil.which(name)
    return code(found) if found else ""


def library(name: str, env: Mapping[str, str]) -> str:
    """Why a shared library may not be loaded, by its path or by its name; empty where it may.

    A name is looked for by the loader: in LD_LIBRARY_PATH, then in root's own folders.
    """
    if "/" in name:
        return code(name)
    for variable in _LIBRARY_PATHS:
        for folder in env.get(variable, "").replace(" ", ":").split(":"):
            if folder and (why := code(f"{folder}/x")):
                return f"{variable} has {folder}: {why}"
    return ""
