"""Which mounts make paths reachable for a user who may not walk down to them.

A checkout often lies in a home folder of mode 0700. On a node, the first ancestor that bars the
way is covered with an empty tmpfs and the path is bound back into it, at its own place, to read
only. Only the plan is made here; node.sh carries it out inside a node's mount namespace.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from supervisor.core.errors import UserError

# Private on every node, so whatever is exposed from below them has to be bound back as well.
PRIVATE = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A path and where it is held while its ancestor is covered."""

    source: Path
    aside: Path
    is_dir: bool

    @property
    def parent(self) -> Path:
        return self.source.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposed:
    covers: tuple[Path, ...]
    binds: tuple[Bind, ...]


def _passable(path: Path, bits: int = stat.S_IXOTH) -> bool:
    return path.stat().st_mode & bits == bits


def _cover(path: Path) -> Path | None:
    """The first ancestor that others may not traverse, or that nodes have of their own."""
    for ancestor in reversed(path.parents):
        if ancestor in PRIVATE or not _passable(ancestor):
            return ancestor
    return None


def _open_up(path: Path) -> list[tuple[Path, Path]]:
    """(path, cover) of what has to be bound to make `path` reachable and listable."""
    if path.is_dir() and not _passable(path, stat.S_IXOTH | stat.S_IROTH):
        cover = _cover(path) or path
        return [(child, cover) for child in sorted(path.iterdir()) if not child.is_symlink()]
    cover_above = _cover(path)
    return [] if cover_above is None else [(path, cover_above)]


def plan(paths: Iterable[Path], *, aside: Path) -> Exposed:
    """Plan the mounts that make `paths` reachable; `aside` is a folder for mount points.

    Raises:
        UserError: a path does not exist.
    """
    wanted: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"cannot expose {path} to the lab: no such file or folder")
        for place in {path.absolute(), path.resolve()}:
            wanted.update(_open_up(place))
    covers = set(wanted.values())
    outermost = sorted(c for c in covers if not covers.intersection(c.parents))
    binds = [
        Bind(source=source, aside=aside / str(i), is_dir=source.is_dir())
        for i, source in enumerate(sorted(wanted))
        if not set(wanted).intersection(source.parents)
    ]
    return Exposed(covers=tuple(c for c in outermost if c not in PRIVATE), binds=tuple(binds))
