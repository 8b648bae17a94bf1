"""Local file systems: room left, and whether the kernel turned one read-only."""

from __future__ import annotations

import os
from typing import Annotated

from healthchecks.check import Findings, Result, Skip, Status, check
from healthchecks.context import Ctx
from supervisor.core.setting import About

_TYPES = ("ext4", "ext3", "ext2", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs")
_DAY_S = 86400.0


def local_mounts(ctx: Ctx, **_options: object) -> list[str]:
    """Mount points of local file systems that hold data: /, /tmp, /var, /home, scratch."""
    found: dict[str, str] = {}
    for line in ctx.text("proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        point, kind = left.split()[4], right.split()[0]
        if kind not in _TYPES or point.startswith(("/proc", "/sys", "/run/user")):
            continue
        if point.endswith("//deleted"):
            continue  # its folder is gone (mounted in another namespace too): no path leads there
        found.setdefault(left.split()[2], point.replace("\\040", " "))  # one for each device
    return sorted(set(found.values()))


@check(
    "fs.local",
    tags={"preflight", "running"},
    resource="fs",
    each=local_mounts,
    hung=Status.FAIL,
    hung_fix="look for I/O errors in the kernel log; the disk may be dead",
)
def fs_local(
    ctx: Ctx,
    mount: str,
    *,
    warn_percent: Annotated[int, About(doc="Used space or inodes to warn at.", unit="%")] = 80,
    fail_percent: Annotated[int, About(doc="Used space or inodes to fail at.", unit="%")] = 85,
) -> Result:
    """Local file systems can be written, have no errors, and have room for logs and code.

    Thresholds: 80 % and 85 % of space and inodes, as in facebookresearch/gcm check_storage. A file
    system that /etc/fstab or its own mount has as writable, and that the kernel made read-only, is
    FAIL; so is an ext4 whose errors_count grew. Errors of the past are WARN: they ask for fsck.
    """
    found = Findings()
    _writable(ctx, mount, found)
    _errors(ctx, mount, found)
    ctx.doing(f"statvfs {mount}")
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
        if used >= warn_percent:
            found.add(
                status,
                f"{used:.0f} % of its {what} is used",
                expected=f"less than {warn_percent} %",
                fix=f"remove what is not needed below {mount}",
            )
    return found.result(f"{free / 2**30:.1f} GiB free of {size / 2**30:.1f}")


def _mounted(ctx: Ctx, mount: str) -> tuple[list[str], list[str]]:
    """The fields of mountinfo on both sides of its dash, of the topmost mount there."""
    found: tuple[list[str], list[str]] = ([], [])
    for line in ctx.text("proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[4].replace("\\040", " ") == mount:
            found = (left.split(), right.split())
    return found


def _writable(ctx: Ctx, mount: str, found: Findings) -> None:
    """The kernel turns a file system read-only when it finds it damaged."""
    left, right = _mounted(ctx, mount)
    if not left:
        return
    of_mount, of_system = left[5].split(","), right[2].split(",")
    damaged = {"emergency_ro", "shutdown"} & {*of_system}  # ext4's words for it since Linux 6.15
    if "ro" not in of_system and not damaged:
        return
    if "rw" in of_mount or damaged or _wanted_writable(ctx, mount):
        found.fail(
            "the kernel made it read-only",
            expected="rw",
            fix="drain the node; look for its first error (dmesg | grep -i ext4), then fsck",
        )


def _wanted_writable(ctx: Ctx, mount: str) -> bool:
    for line in (ctx.maybe("etc/fstab") or "").splitlines():
        fields = line.split()
        if len(fields) >= 4 and not line.startswith("#") and fields[1] == mount:
            return "ro" not in fields[3].split(",")
    return False


def _errors(ctx: Ctx, mount: str, found: Findings) -> None:
    """What ext4 counted since its last fsck."""
    left, right = _mounted(ctx, mount)
    if not left or not right[0].startswith("ext"):
        return
    block = ctx.path(f"sys/dev/block/{left[2]}")
    disk = block.resolve().name if block.exists() else right[1].rpartition("/")[2]
    text = ctx.maybe(f"sys/fs/ext4/{disk}/errors_count")
    if text is None:
        return
    found.metric("errors", int(text))
    rise = ctx.memory.rise(f"errors:{left[2]}", int(text))
    recent = ctx.memory.recent(f"errors:{left[2]}", rise.by if rise else 0, _DAY_S)
    fresh = sum(int(by) for _, by in recent)
    if int(text):
        found.add(
            Status.FAIL if fresh else Status.WARN,
            f"{text} errors since its last fsck" + (f", {fresh} of them new" if fresh else ""),
            expected="none",
            fix="drain the node and run fsck on it at the next boot; look at the disk",
        )
