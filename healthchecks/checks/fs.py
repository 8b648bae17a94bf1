"""Local file systems: room left, and whether the kernel turned one read-only."""

from __future__ import annotations

import os
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Status, check
from healthchecks.frame.context import Ctx
from healthchecks.sources.mounts import fstab_rows, table
from supervisor.core.setting import About

_TYPES = ("ext4", "ext3", "ext2", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs")
_DAY_S = 86400.0


# What nodes, their services and jobs write to by themselves; others may be full by design.
_NEEDED = (
    *("/", "/home", "/root", "/run", "/tmp"),  # noqa: S108 - a mount point
    *("/var", "/var/lib", "/var/log", "/var/tmp"),  # noqa: S108 - a mount point
)
# Of containers and sessions: a tmpfs for each secret, a file system for each sandbox.
_OTHERS = (
    "/proc",
    "/sys",
    "/run/user/",
    "/run/credentials/",
    "/run/netns",
    "/run/containerd/",
    "/run/docker/",
    "/run/containers/",
    "/var/lib/kubelet/",
    "/var/lib/docker/",
    "/var/lib/containerd/",
    "/var/lib/containers/",
    "/snap/",
)


def local_mounts(ctx: Ctx, **_options: object) -> list[str]:
    """Mount points of local file systems that hold data: /, /tmp, /var, /home, scratch."""
    found: dict[str, str] = {}
    for mounted in table(ctx).mounts:
        point = mounted.point
        if mounted.fstype not in _TYPES or point.startswith(_OTHERS):
            continue
        if point.endswith("//deleted"):
            continue  # its folder is gone (mounted in another namespace too): no path leads there
        found.setdefault(mounted.device, point)  # one for each device
    return sorted(set(found.values()))


@check(
    "fs.local",
    tags={"preflight", "running"},
    resource="fs",
    targets=local_mounts,
    on_timeout=Status.FAIL,
    timeout_fix="look for I/O errors in the kernel log; the disk may be dead",
)
def fs_local(
    ctx: Ctx,
    mount: str,
    *,
    warn_percent: Annotated[int, About(doc="Used space or inodes to warn at.", unit="%")] = 80,
    fail_percent: Annotated[int, About(doc="Used space or inodes to fail at.", unit="%")] = 85,
    needed: Annotated[
        tuple[str, ...], About(doc="Mount points that must have room; others may be full.")
    ] = _NEEDED,
) -> Result:
    """Local file systems can be written, have no errors, and have room for logs and code.

    Thresholds: 80 % and 85 % of space and inodes, as in facebookresearch/gcm check_storage, where
    services and jobs write by themselves (`needed`); /boot, data sets and caches are full by
    design, and /dev/shm is nccl.shm's. A file
    system that /etc/fstab or its own mount has as writable, and that the kernel made read-only, is
    FAIL; so is an ext4 whose errors_count grew. Errors of the past are WARN: they ask for fsck.
    A full file system is its users' doing, and drains no node: every local disk has a folder where
    somebody may write.
    """
    found = Findings()
    _writable(ctx, mount, found)
    _errors(ctx, mount, found)
    ctx.announce(f"statvfs {mount}")
    try:
        stat = os.statvfs(ctx.path(mount))
    except (PermissionError, FileNotFoundError) as error:  # nothing of this user's fills it
        if found.result("").status is Status.OK:
            closed = isinstance(error, PermissionError)
            why = "lies where this user may not go" if closed else "is hidden by a mount over it"
            raise Skip(f"{mount} {why}") from None
        return found.result("")
    size, free = stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
    for what, total, left in (("space", size, free), ("inodes", stat.f_files, stat.f_favail)):
        if total == 0:
            continue
        used = 100.0 * (1 - left / total)
        found.metric(f"{what}_used", used, "%")
        status = Status.FAIL if used >= fail_percent else Status.WARN
        if used >= warn_percent and mount in needed:
            found.add(
                status,
                f"{used:.0f} % of its {what} is used",
                expected=f"less than {warn_percent} %",
                fix=f"remove what is not needed below {mount}",
                by_users=True,
            )
    return found.result(f"{free / 2**30:.1f} GiB free of {size / 2**30:.1f}")


def _writable(ctx: Ctx, mount: str, found: Findings) -> None:
    """The kernel turns a file system read-only when it finds it damaged."""
    mounted = table(ctx).top(mount)
    if mounted is None or mounted.unwritable:
        return
    # The latter are ext4's words for it since Linux 6.15.
    damaged = {"emergency_ro", "shutdown"} & {*mounted.inner}
    if "ro" not in mounted.inner and not damaged:
        return
    if "rw" in mounted.options or damaged or _wanted_writable(ctx, mount):
        found.fail(
            "the kernel made it read-only",
            expected="rw",
            fix="drain the node; look for its first error (dmesg | grep -i ext4), then fsck",
        )


def _wanted_writable(ctx: Ctx, mount: str) -> bool:
    rows = fstab_rows(ctx.maybe("etc/fstab") or "")
    return any(row.point == mount and "ro" not in row.options for row in rows)


def _errors(ctx: Ctx, mount: str, found: Findings) -> None:
    """What ext4 counted since its last fsck."""
    mounted = table(ctx).top(mount)
    if mounted is None or not mounted.fstype.startswith("ext"):
        return
    block = ctx.path(f"sys/dev/block/{mounted.device}")
    disk = block.resolve().name if block.exists() else mounted.source.rpartition("/")[2]
    text = ctx.maybe(f"sys/fs/ext4/{disk}/errors_count")
    if text is None:
        return
    found.metric("errors", int(text))
    delta = ctx.memory.counter_delta(f"errors:{mounted.device}", int(text))
    recent = ctx.memory.recent(f"errors:{mounted.device}", delta.by if delta else 0, _DAY_S)
    fresh = sum(int(by) for _, by in recent)
    if int(text):
        found.add(
            Status.FAIL if fresh else Status.WARN,
            f"{text} errors since its last fsck" + (f", {fresh} of them new" if fresh else ""),
            expected="none",
            fix="drain the node and run fsck on it at the next boot; look at the disk",
        )
