"""What is on disk and in the sockets of a run, against supervisor.host.footprint."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from supervisor.host.footprint import FILES, PORTS, FileRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A path as it was at one moment."""

    path: str
    kind: str
    mode: int
    owner: int


def kind_of(mode: int) -> str:
    names = {stat.S_IFDIR: "folder", stat.S_IFLNK: "link", stat.S_IFSOCK: "socket"}
    return names.get(stat.S_IFMT(mode), "file" if stat.S_ISREG(mode) else "odd")


def walk(*roots: Path) -> set[Seen]:
    """Everything below, the roots too; what goes meanwhile is passed over."""
    found = set()
    paths = [str(root) for root in roots]
    for root in roots:
        for folder, folders, files in os.walk(root):
            paths += [os.path.join(folder, name) for name in (*folders, *files)]
    for path in paths:
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            continue
        mode = stat.S_IMODE(info.st_mode)
        found.add(Seen(path=path, kind=kind_of(info.st_mode), mode=mode, owner=info.st_uid))
    return found


def row_of(path: str, kind: str, places: Mapping[str, str]) -> FileRow | None:
    for row in FILES:
        if row.kind in (kind, "any") and row.matches(path, places):
            return row
    return None


def unexplained(seen: Iterable[Seen], places: Mapping[str, str], uid: int) -> list[str]:
    """What no row knows, and what is not as its row says."""
    wrong = []
    for one in sorted(seen, key=lambda s: s.path):
        row = row_of(one.path, one.kind, places)
        if row is None:
            wrong.append(f"{one.path}: a {one.kind} that no row knows")
        elif one.owner != uid:
            wrong.append(f"{one.path}: owned by {one.owner}")
        elif row.mode is not None and one.mode != row.mode and one.kind != "link":
            wrong.append(f"{one.path}: mode {one.mode:04o}, the table says {row.mode:04o}")
    return wrong


def shown(seen: Iterable[Seen], places: Mapping[str, str]) -> set[FileRow]:
    return {row for s in seen if (row := row_of(s.path, s.kind, places)) is not None}


def listening(pids: Mapping[int, str]) -> tuple[set[str], set[str]]:
    """Who of PORTS listens on the network, and the paths of unix sockets; others are named."""
    net, unix = set(), set()
    for pid, argv in pids.items():
        try:
            process = psutil.Process(pid)
            inet, local = process.net_connections("tcp"), process.net_connections("unix")
        except psutil.NoSuchProcess:
            continue
        if any(one.status == psutil.CONN_LISTEN for one in inet):
            known = [port.who for port in PORTS if port.who in argv]
            net.add(known[0] if known else argv)
        unix |= {str(one.laddr) for one in local if str(one.laddr).startswith("/")}
    return net, unix
