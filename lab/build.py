"""A lab's folder: check, lock it, fill it, empty it again whatever state it was left in."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import json
import os
import pwd
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import cgroups, expose, node, slurm_conf
from lab.layout import BASE, CONTROLLER, LOWEST_UID, MAX_NODES, USER, Layout, addresses
from lab.packages import UnpackedSlurm
from supervisor import proc
from supervisor.core.errors import UserError

PROGRAMS = ("munged", "ip", "nsenter", "unshare", "setsid", "mount", "hostname")
SLURMS = ("slurmctld", "slurmd", "sinfo")  # of the machine, where no other release is asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a lab was asked to be. `complete` is set once all of its nodes were idle."""

    nodes: int
    gpus: int
    settings: dict[str, str]
    exposed: list[str]
    uid: int
    strict: bool = False
    slurm: str = ""  # a release from Debian's packages; empty: the machine's own Slurm
    running: str = ""  # what Slurm that is, in full
    complete: bool = False


def load(layout: Layout) -> Spec | None:
    """The lab's Spec; None where no lab was ever laid out."""
    try:
        return Spec(**json.loads(layout.spec.read_text()))
    except FileNotFoundError:
        return None


def save(layout: Layout, spec: Spec) -> None:
    new = layout.spec.with_suffix(".new")
    new.write_text(json.dumps(asdict(spec), indent=1) + "\n")
    new.replace(layout.spec)


def free_uid() -> int:
    """A uid and gid that this machine does not use."""
    taken = {entry.pw_uid for entry in pwd.getpwall()} | {entry.gr_gid for entry in grp.getgrall()}
    return next(uid for uid in range(LOWEST_UID, 60000) if uid not in taken)


@contextlib.contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """One command at a time builds or removes a lab. The lab's folder is the lock.

    Raises:
        UserError: another command holds the lab.
    """
    umask = os.umask(0o022)
    try:
        fd = _lock(layout)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # not empty: the lab is up, or others are
                layout.dir.rmdir()
                BASE.rmdir()
            os.close(fd)
    finally:
        os.umask(umask)


def _lock(layout: Layout) -> int:
    while True:
        layout.dir.mkdir(parents=True, exist_ok=True)
        fd = os.open(layout.dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise UserError(
                f"lab {layout.name} is being brought up or down by another command; try again"
            ) from None
        # The folder may have been removed, and made anew, between opening and locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(fd).st_ino == layout.dir.stat().st_ino:
                return fd
        os.close(fd)


def clear(layout: Layout, *, deadline_s: float = 20) -> None:
    """Kill what runs and empty the folder, whatever state a crash left them in.

    Twice nothing found means done: without node.sh a late starter gets nowhere.
    """
    end = time.monotonic() + deadline_s
    quiet = 0
    while quiet < 2:
        pids = node.boot_pids(layout)
        node.kill(pids)
        left = cgroups.remove(layout) + _emptied(layout.dir)
        quiet = 0 if pids or left else quiet + 1
        if time.monotonic() > end:
            raise UserError(
                f"lab {layout.name}: cannot end processes {pids} or remove {left}; "
                "see /proc/PID/stack"
            )
        time.sleep(0.01)


def _emptied(folder: Path) -> list[Path]:
    """Remove what is in a folder; returns what would not go (something still writes there)."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    return list(folder.iterdir())


def write(layout: Layout, spec: Spec, slurm: UnpackedSlurm | None) -> None:
    """Write every file of the lab; nothing runs yet. `slurm` lies over the machine's own."""
    save(layout, spec)
    for name, address in addresses(spec.nodes).items():
        home = layout.node(name)
        (home / "cgroup").mkdir(parents=True)
        (home / "spool").mkdir()
        (home / "address").write_text(f"{address}\n")
    (layout.node(CONTROLLER) / "state").mkdir()
    _write_etc(layout, spec)
    (layout.dir / "gpus").mkdir()
    for i in range(spec.gpus):
        # slurmd sets CUDA_VISIBLE_DEVICES only for character devices; these are all /dev/null.
        device = layout.dir / "gpus" / f"nvidia{i}"
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    layout.shared.mkdir()
    layout.home.mkdir(mode=0o700)
    for path in (layout.shared, layout.home):
        os.chown(path, spec.uid, spec.uid)
    layout.munge.mkdir()
    (layout.munge / "key").touch(mode=0o400)
    (layout.munge / "key").write_bytes(os.urandom(128))
    plan = expose.plan([Path(path) for path in spec.exposed], aside=layout.dir / "aside")
    (layout.dir / "aside").mkdir()
    for bind in plan.binds:
        if bind.is_dir:
            bind.aside.mkdir()
        else:
            bind.aside.touch()
    script = slurm_conf.node_script(layout, exposed=plan, strict=spec.strict, slurm=slurm)
    layout.boot_script.write_text(script)


def _write_etc(layout: Layout, spec: Spec) -> None:
    slurm = layout.etc / "slurm"
    slurm.mkdir(parents=True)
    conf = slurm_conf.slurm_conf(
        layout, nodes=spec.nodes, gpus=spec.gpus, settings=spec.settings, strict=spec.strict
    )
    (slurm / "slurm.conf").write_text(conf)
    if spec.strict:
        (slurm / "cgroup.conf").write_text(slurm_conf.CGROUP_CONF)
        layout.epilog.write_text(slurm_conf.EPILOG)
        layout.epilog.chmod(0o755)
    (slurm / "gres.conf").write_text(slurm_conf.gres_conf(layout, gpus=spec.gpus))
    hosts = "".join(f"{address} {name}\n" for name, address in addresses(spec.nodes).items())
    (layout.etc / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
    user = f"{USER}:x:{spec.uid}:{spec.uid}:superv lab:{layout.home}:/bin/bash\n"
    (layout.etc / "passwd").write_text(Path("/etc/passwd").read_text() + user)
    group = f"{USER}:x:{spec.uid}:\n"
    (layout.etc / "group").write_text(Path("/etc/group").read_text() + group)


def check_root() -> None:
    if os.geteuid() != 0:
        raise UserError(
            "superv lab needs root: it makes network namespaces; run it as root, or with sudo"
        )


def check(nodes: int, gpus: int, *, strict: bool, slurm: str) -> None:
    """Whether a lab of this size can be made here at all; UserError says why not."""
    check_root()
    if not 1 <= nodes <= MAX_NODES:
        raise UserError(f"--nodes {nodes}: a lab has 1 to {MAX_NODES} nodes")
    if not 1 <= gpus <= 64:
        raise UserError(f"--gpus {gpus}: a node has 1 to 64")
    programs = PROGRAMS if slurm else (*SLURMS, *PROGRAMS)
    if missing := [name for name in programs if shutil.which(name, path=node.PATH) is None]:
        raise UserError(
            f"superv lab misses {', '.join(missing)}; on Debian: apt-get install "
            "slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge iproute2 util-linux"
        )
    if strict:
        for controller in cgroups.SLURMS:
            cgroups.check(controller, what="a strict lab")
    spaces = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "true"]
    made = proc.run_sync(spaces, deadline_s=10)
    if made.rc != 0:
        raise UserError(f"superv lab cannot make namespaces on this machine: {made.why()}")
