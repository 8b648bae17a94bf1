"""The machine that engines run on: packages, state directory, address and ports."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from supervisor import __version__, proc, runs
from supervisor.app import engine_address
from supervisor.config import Job, PortRange, Site
from supervisor.core.errors import UserError
from supervisor.doctor.finding import Finding, fail, ok, unknown, warn

STAT_S = 5.0
LITTLE_MB, TOO_LITTLE_MB = 1000, 100  # a journal grows by some MB a day
# What `stat --file-system` (coreutils 9.1) calls them. flock, rename and unix sockets are not to be
# relied on over a network, and a server that hangs would hang the engine.
NETWORK = frozenset(
    (
        *("nfs", "nfs4", "lustre", "gpfs", "ceph", "cifs", "smb", "smb2", "afs", "panfs", "fhgfs"),
        *("v9fs", "gfs/gfs2", "ocfs2", "fuseblk"),
    )
)
LOCAL = frozenset(
    ("ext2/ext3", "ext4", "xfs", "btrfs", "zfs", "overlayfs", "f2fs", "jfs", "reiserfs", "bcachefs")
)
MEMORY = frozenset(("tmpfs", "ramfs"))


def packages() -> list[Finding]:
    """superv's version, and whether another distribution owns the package `supervisor` too."""
    found = [ok("superv", f"version {__version__}, {Path(__file__).parents[1]}")]
    others = sorted(
        {
            f"{name} {metadata.version(name)}"
            for name in metadata.packages_distributions().get("supervisor", [])
            if name != "superv"
        }
    )
    if others:
        return [
            *found,
            fail(
                "packages",
                f"{', '.join(others)} installs a package `supervisor` here too: each overwrites "
                "files of the other",
                "install superv into an environment of its own",
            ),
        ]
    return [*found, ok("packages", "no other distribution here installs a package `supervisor`")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A file system, asked through a child."""

    path: Path  # the wanted one, or its nearest parent that is there
    kind: str
    free_mb: int


async def storage(path: Path) -> Storage | str:
    """The file system that the path is or would be on; or why it can't be told."""
    for place in (path, *path.parents):
        argv = ("stat", "--file-system", "--format=%T|%a|%S", str(place))
        done = await proc.run(argv, deadline_s=STAT_S, env={**os.environ, "LC_ALL": "C"})
        if done.rc == 0:
            kind, blocks, size = done.out.strip().split("|")
            return Storage(path=place, kind=kind, free_mb=int(blocks) * int(size) // 1_000_000)
        if done.rc is None or "No such file" not in done.err:
            return f"{place}: {done.why()}"
    return f"{path}: no parent is there"


async def state(site: Site, job: Job | None) -> list[Finding]:
    """Journals and keys need a local directory that is the user's alone."""
    check, path, fix = "state_dir", site.state_dir, "set state_dir in site.yaml to a local disk"
    seen = await storage(path)
    if isinstance(seen, str):
        return [unknown(check, seen, fix)]
    there = seen.path
    found: list[Finding] = []
    if seen.kind in NETWORK:
        found.append(fail(check, f"{path} is on {seen.kind}, not on a local disk", fix))
    elif seen.kind in MEMORY:
        found.append(warn(check, f"{path} is on {seen.kind}: a reboot forgets the runs", fix))
    elif seen.kind not in LOCAL:
        found.append(unknown(check, f"{path} is on {seen.kind}; is that a local disk?", fix))
    if seen.free_mb < LITTLE_MB:
        mend = f"make room on the file system of {there}"
        text = f"{there}: {seen.free_mb} MB are free"
        found.append((fail if seen.free_mb < TOO_LITTLE_MB else warn)(check, text, mend))
    info = there.stat()
    if there == path and info.st_uid != os.getuid():
        mine = "set state_dir in site.yaml to a directory of your own"
        found.append(
            fail(check, f"{path} belongs to uid {info.st_uid}, you are {os.getuid()}", mine)
        )
    if there == path and info.st_mode & 0o022:
        mode = f"{path} has mode {info.st_mode & 0o7777:04o}: others may write there"
        found.append(fail(check, mode, f"chmod 700 {path}"))
    open_ones = [r.path for r in runs.every(path) if r.path.stat().st_mode & 0o077]
    if open_ones:
        text = f"{open_ones[0]} holds keys and is open to others"
        found.append(fail(check, text, f"chmod 700 {open_ones[0]}"))
    if not os.access(there, os.W_OK | os.X_OK):
        found.append(fail(check, f"{there} can't be written by you", fix))
    longest = runs.runs_dir(path) / (job.name if job else "x" * 20) / "control.sock"
    if len(os.fsencode(longest)) > runs.SOCKET_LIMIT:
        text = f"{longest} is longer than a socket's path may be ({runs.SOCKET_LIMIT} bytes)"
        found.append(fail(check, text, "set a shorter state_dir in site.yaml"))
    new = "" if there == path else ", not there yet"
    return found or [ok(check, f"{path} ({seen.kind}, {seen.free_mb // 1000} GB free{new})")]


def address(site: Site, job: Job | None) -> list[Finding]:
    """Where agents reach the engine: an address of this machine with a free port."""
    check, fix = "engine_address", "set engine_address in site.yaml: an interface or an address"
    try:
        there = engine_address(job, site)
    except UserError as error:
        return [fail(check, str(error), fix)]
    for port in range(site.engine_ports.first, site.engine_ports.last + 1):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((there, port))
            except OSError as error:
                if error.errno == 99:  # EADDRNOTAVAIL
                    return [fail(check, f"{there} is no address of this machine", fix)]
                continue
        chosen = f"engine_address: {site.engine_address}" if site.engine_address else "host name"
        why = "launcher: local" if job is not None and job.launcher == "local" else chosen
        return [ok(check, f"{there} ({why}, interface {_interface(there)}), port {port} is free")]
    text = f"no port of {site.engine_ports} is free on {there}"
    return [fail(check, text, "set another engine_ports in site.yaml")]


def _interface(address: str) -> str:
    """The name of the interface that has the address; `?` where that can't be told."""
    import fcntl
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                packed = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(asked.fileno(), 0x8915, packed)  # SIOCGIFADDR
            except OSError:
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return "lo" if address.startswith("127.") else "?"


def ports(site: Site) -> list[Finding]:
    """The port ranges lie outside of the one that the kernel gives to outgoing connections."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    found = []
    for name, chosen in (("engine_ports", site.engine_ports), ("rank_ports", site.rank_ports)):
        if chosen.first <= last and first <= chosen.last:
            fix = f"set {name} in site.yaml outside of {first}-{last}"
            found.append(warn(name, f"{chosen}: {_taken(first, last, chosen)}", fix))
        else:
            found.append(ok(name, f"{chosen}, outside of the kernel's own {first}-{last}"))
    return found


def _taken(first: int, last: int, chosen: PortRange) -> str:
    low, high = max(first, chosen.first), min(last, chosen.last)
    return f"the kernel gives {low}-{high} to outgoing connections, which may be in the way"
