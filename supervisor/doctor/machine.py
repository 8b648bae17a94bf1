"""The machine that engines run on: packages, state directory, address and ports."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from healthchecks.frame.report import Finding
from supervisor import __version__, proc
from supervisor.config import Job, PortRange, Site
from supervisor.core.errors import UserError
from supervisor.doctor.finding import fail, ok, unknown, warn
from supervisor.engine.address import engine_address
from supervisor.host import emptied, private, trusted
from supervisor.host.interfaces import interface_of
from supervisor.run import folder

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
    found.append(ok("packages", "no other distribution here installs a package `supervisor`"))
    return [*found, for_root(Path(__file__).parents[1])]


def for_root(place: Path) -> Finding:
    """Whether slurm.conf may name this installation: root must not run what others can change."""
    places = (place, Path(sys.prefix))
    why = next((why for at in places if (why := trusted.problem(at, as_root=True))), "")
    if not why:
        return ok("as root", "only root can change this installation: slurm.conf may name it")
    fix = (
        "for Prolog and HealthCheckProgram install superv where only root may write: "
        "python3 -m venv /opt/superv, as root (docs/slurm.md)"
    )
    if os.geteuid() == 0:
        return warn("as root", why, fix)
    return ok("as root", f"yours to use, and not root's: {why}; {fix}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystem:
    """A file system, asked through a child."""

    path: Path  # the wanted one, or its nearest parent that is there
    kind: str
    free_mb: int


async def file_system(path: Path) -> FileSystem | str:
    """The file system that the path is or would be on; or why that is unknown."""
    for place in (path, *path.parents):
        argv = ("stat", "--file-system", "--format=%T|%a|%S", str(place))
        done = await proc.run(argv, deadline_s=STAT_S, env={**os.environ, "LC_ALL": "C"})
        if done.rc == 0:
            kind, blocks, size = done.out.strip().split("|")
            return FileSystem(path=place, kind=kind, free_mb=int(blocks) * int(size) // 1_000_000)
        if done.rc is None or "No such file" not in done.err:
            return f"{place}: {done.why()}"
    return f"{path}: no parent is there"


async def state(site: Site, job: Job | None) -> list[Finding]:
    """Journals and keys need a local directory that is the user's alone."""
    check, path, fix = "state_dir", site.state_dir, "set state_dir in site.yaml to a local disk"
    seen = await file_system(path)
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
        room = f"make room on the file system of {there}"
        text = f"{there}: {seen.free_mb} MB are free"
        found.append((fail if seen.free_mb < TOO_LITTLE_MB else warn)(check, text, room))
    if why := private.problem(path) or private.problem(folder.runs_dir(path)):
        found.append(fail(check, why, folder.MINE))
    open_ones = [r.path for r in folder.every(path) if r.path.stat().st_mode & 0o077]
    if open_ones:
        text = f"{open_ones[0]} holds keys and is open to others"
        found.append(fail(check, text, f"chmod 700 {open_ones[0]}"))
    if not os.access(there, os.W_OK | os.X_OK):
        found.append(fail(check, f"{there} can't be written by you", fix))
    longest = folder.runs_dir(path) / (job.name if job else "x" * 20) / "control.sock"
    if len(os.fsencode(longest)) > folder.SOCKET_LIMIT:
        text = f"{longest} is longer than a socket's path may be ({folder.SOCKET_LIMIT} bytes)"
        found.append(fail(check, text, "set a shorter state_dir in site.yaml"))
    new = "" if there == path else ", not there yet"
    return found or [ok(check, f"{path} ({seen.kind}, {seen.free_mb // 1000} GB free{new})")]


def places(site: Site, job: Job | None) -> list[Finding]:
    """Whether what is to stay lies where nobody empties it."""
    checkpoints = job.checkpoints.dir if job is not None and job.checkpoints else None
    found = []
    for note in emptied.notes(site.state_dir, site.node_dir, checkpoints):
        text, _, fix = note.rpartition("; ")
        found.append(warn("places", text, fix))
    text = "the run's folder, node_dir and checkpoints are where nobody empties them"
    return found or [ok("places", text)]


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
        why = "nodes of this machine" if job is not None and job.on_this_machine else chosen
        name = interface_of(there) or "?"
        return [ok(check, f"{there} ({why}, interface {name}), port {port} is free")]
    text = f"no port of {site.engine_ports} is free on {there}"
    return [fail(check, text, "set another engine_ports in site.yaml")]


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
