"""What is mounted where, and from which server: /proc/self/mountinfo and /etc/fstab as values.

Text in, values out; nothing here touches a mounted file system. Field order: proc(5), fstab(5).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from healthchecks.frame.check import Unknown
from healthchecks.frame.context import Ctx
from supervisor.core.setting import about

NFS = ("nfs", "nfs4")
NFS_PORT = 2049
# Clients that wait for a server. FUSE is told apart below: most of it is local, or one user's own.
NETWORK = frozenset(
    (*NFS, "lustre", "wekafs", "ceph", "gpfs", "beegfs", "panfs", "orangefs", "cifs", "smb3", "afs")
)
LOCAL_FUSE = frozenset(
    f"fuse.{name}"
    for name in (
        "lxcfs",
        "fuse-overlayfs",
        "snapfuse",
        "squashfuse",
        "squashfuse_ll",
        "gvfsd-fuse",
        "portal",
        "ntfs-3g",
        "bindfs",
    )
)
# File systems without a way to write to them: Documentation/filesystems of Linux 6.12.
UNWRITABLE = frozenset(
    ("squashfs", "iso9660", "udf", "erofs", "cramfs", "romfs", "efs", "fuse.squashfuse")
)
_ESCAPE = re.compile(r"\\([0-7]{3})")
_SOURCE = re.compile(r"(?:\[(?P<v6>[^]]+)\]|(?P<host>[^:/\[\]]+)):(?P<path>/.*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedMount:
    """A mount that should be there."""

    path: str = field(metadata=about("Where; the mount point itself, not a link to it."))
    source: str = field(default="", metadata=about("What, as 10.0.0.5:/export; any if empty."))
    fstype: str = field(default="", metadata=about("`nfs` stands for nfs4 too; any if empty."))
    options: tuple[str, ...] = field(
        default=(), metadata=about("Options that must be in force, as rw, hard, nconnect=16.")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounted:
    """One line of mountinfo."""

    id: int
    parent: int
    device: str  # major:minor
    point: str
    options: tuple[str, ...]  # of the mount
    fstype: str
    source: str
    inner: tuple[str, ...]  # of the file system; here are NFS's own

    @property
    def in_force(self) -> set[str]:
        """All options; `ro` of either kind wins, as it does in the kernel."""
        every = {*self.options, *self.inner}
        return every - {"rw"} if "ro" in every else every

    @property
    def unwritable(self) -> bool:
        """Whether nobody could ever write to it: an image, or an overlay without an upper layer."""
        layers = self.fstype in ("overlay", "fuse.fuse-overlayfs")
        return self.fstype in UNWRITABLE or (layers and not self.value("upperdir"))

    def value(self, option: str) -> str:
        """Of an option `name=value`; empty where it is not set."""
        start = f"{option}="
        return next((o.removeprefix(start) for o in self.inner if o.startswith(start)), "")

    @property
    def network(self) -> bool:
        """Whether it waits for a server on behalf of the whole node.

        FUSE counts where root mounted it for everybody (user_id=0, allow_other): what a user has
        mounted for himself is his, and root may not even look at it.
        """
        if self.fstype == "fuse" or self.fstype.startswith("fuse."):
            for_all = "allow_other" in self.inner and self.value("user_id") == "0"
            return for_all and self.fstype not in LOCAL_FUSE
        return self.fstype in NETWORK

    @property
    def server(self) -> NfsServer | None:
        """Of an NFS mount."""
        host = host_of(self.source) if self.fstype in NFS else ""
        if not host:
            return None
        port = self.value("port")
        return NfsServer(
            host=host,
            addr=self.value("addr"),
            port=int(port) if port.isdecimal() and port != "0" else NFS_PORT,
            proto=self.value("proto"),
        )

    @property
    def shared(self) -> str:
        """What other nodes have it from, in the words of `Result.shared`."""
        server = self.server
        return server.name if server else f"{self.fstype} {self.source}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NfsServer:
    """Where an NFS mount comes from."""

    host: str  # as the mount command was given it
    addr: str = ""
    port: int = NFS_PORT
    proto: str = ""

    @property
    def name(self) -> str:
        return f"nfs server {self.host}" + (f" ({self.addr})" if self._named else "")

    @property
    def _named(self) -> bool:
        return self.addr not in ("", self.host)

    @property
    def endpoint(self) -> str:
        """HOST:PORT, where it accepts connections."""
        return endpoint_of(self.addr or self.host, self.port)

    @property
    def tcp(self) -> bool:
        return self.proto.startswith("tcp")


def endpoint_of(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(source: str) -> str:
    """The server in `host:/path` and `[fd00::1]:/path`; empty for anything else."""
    match = _SOURCE.fullmatch(source)
    return (match["v6"] or match["host"]) if match else ""


def plain(text: str) -> str:
    """Blanks and such are octal in these files: \\040."""
    return _ESCAPE.sub(lambda m: chr(int(m[1], 8)), text)


def lines(text: str) -> list[str]:
    """As the kernel ends them, by LF alone: a user's mount point may hold the ten other ends that
    str.splitlines knows."""
    return text.removesuffix("\n").split("\n") if text else []


class Table:
    """All mounts of a process, and which of them a path leads to."""

    def __init__(self, mounts: Iterable[Mounted]) -> None:
        self.mounts = tuple(mounts)
        ids = {m.id for m in self.mounts}
        self._below: dict[int, list[Mounted]] = {}
        for mounted in self.mounts:
            # Below nothing (0, which no mount has): the first of all, which is its own parent, and
            # what has a parent that this process does not see.
            first = mounted.parent == mounted.id or mounted.parent not in ids
            self._below.setdefault(0 if first else mounted.parent, []).append(mounted)

    def under(self, path: str) -> Mounted | None:
        """The mount that a path leads to, as the kernel walks it: newer mounts hide older ones."""
        here: Mounted | None = None
        while True:
            ways = [m for m in self._below.get(here.id if here else 0, []) if within(path, m.point)]
            if not ways:
                return here
            first = min(len(m.point) for m in ways)
            here = [m for m in ways if len(m.point) == first][-1]

    def at(self, point: str) -> Mounted | None:
        """What is seen on this mount point; None where nothing is mounted on it."""
        found = self.under(point)
        return found if found is not None and found.point == point else None

    def stacked(self, point: str) -> list[Mounted]:
        """Everything that was mounted on this point, oldest first, hidden or not."""
        return [m for m in self.mounts if m.point == point]

    def top(self, point: str) -> Mounted | None:
        """What was mounted last on this point, whether or not a path still leads to it."""
        return next(iter(self.stacked(point)[::-1]), None)

    def network(self) -> list[Mounted]:
        """The network mounts that are not hidden, one for each file system: bind mounts show the
        same one again, containers by the hundred."""
        found: dict[str, Mounted] = {}
        for mounted in self.mounts:
            if mounted.network and self.at(mounted.point) is mounted:
                found.setdefault(mounted.device, mounted)
        return list(found.values())

    def server_name(self, host: str) -> str:
        """Of an NFS server by its name or address, in the words of the mounts that come from it."""
        servers = [m.server for m in self.network() if m.server is not None]
        same = (server.name for server in servers if host in (server.addr, server.host))
        return next(same, NfsServer(host=host).name)

    def shared(self, want: ExpectedMount) -> str:
        """What other nodes would have it from; empty where its source is not said."""
        if (host := host_of(want.source)) and want.fstype in ("", *NFS):
            return self.server_name(host)
        return f"{want.fstype or 'file system'} {want.source}" if want.source else ""


def tidy(path: str) -> str:
    """A path as mountinfo writes it. Raises Unknown for one that does not begin at the root."""
    if not path.startswith("/"):
        raise Unknown(f"{path!r} is configured; a mount is named by its full path")
    return posixpath.normpath(path)


def within(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def table(ctx: Ctx) -> Table:
    """What this node has mounted. Raises OSError, Unknown for a line that can't be read."""
    return Table(parse_mountinfo(ctx.text("proc/self/mountinfo")))


def parse_mountinfo(text: str) -> list[Mounted]:
    """Raises Unknown for a line that is none of mountinfo's."""
    found = []
    for line in lines(text):
        left, dash, right = line.partition(" - ")
        try:
            number, parent, device, _root, point, options, *_ = left.split(" ")
            fstype, source, inner, *_ = [*right.split(" "), ""]
            found.append(
                Mounted(
                    id=int(number),
                    parent=int(parent),
                    device=device,
                    point=plain(point),
                    options=tuple(options.split(",")),
                    fstype=fstype,
                    source=plain(source),
                    inner=tuple(plain(inner).split(",")),
                )
            )
        except ValueError:
            dash = ""
        if not dash:
            raise Unknown(f"/proc/self/mountinfo has a line that is none: {line[:80]!r}")
    return found


class FstabRow(NamedTuple):
    """One line of /etc/fstab."""

    source: str
    point: str
    fstype: str
    options: tuple[str, ...]


def fstab_rows(text: str) -> Iterator[FstabRow]:
    """Lines that are none are left out: mount(8) does so too."""
    for line in text.splitlines():
        fields = line.split("#", 1)[0].split()
        if len(fields) >= 3:
            source, point, fstype, options = map(plain, [*fields, "defaults"][:4])
            yield FstabRow(source, point, fstype, tuple(options.split(",")))


def parse_fstab(text: str) -> list[ExpectedMount]:
    """The network mounts that are mounted at boot; of their options only `ro` or `rw`.

    fstab's other options are orders to mount(8), or come out changed; what must be in force is said
    in the check's own configuration.
    """
    found = []
    for source, point, fstype, options in fstab_rows(text):
        network = fstype in NETWORK or (fstype.startswith("fuse.") and fstype not in LOCAL_FUSE)
        if network and point.startswith("/") and "noauto" not in options:
            access = ("ro" if "ro" in options else "rw",)
            found.append(
                ExpectedMount(path=tidy(point), source=source, fstype=fstype, options=access)
            )
    return found


def nfs_servers(mounts: Sequence[Mounted]) -> dict[str, list[Mounted]]:
    """NFS mounts by the name of their server."""
    found: dict[str, list[Mounted]] = {}
    for mounted in mounts:
        if (server := mounted.server) is not None:
            found.setdefault(server.name, []).append(mounted)
    return found
