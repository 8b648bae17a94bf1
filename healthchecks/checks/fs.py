"""Local file systems: room left, and whether the kernel turned one read-only."""

from __future__ import annotations

import os
from typing import Annotated

from healthchecks.check import Findings, Result, Status, check
from healthchecks.context import Ctx
from supervisor.core.setting import About

_TYPES = ("ext4", "ext3", "ext2", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs")


def local_mounts(ctx: Ctx, **_options: object) -> list[str]:
    """Mount points of local file systems that hold data: /, /tmp, /var, /home, scratch."""
    found: dict[str, str] = {}
    for line in ctx.text("proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        point, kind = left.split()[4], right.split()[0]
        if kind not in _TYPES or point.startswith(("/proc", "/sys", "/run/user")):
            continue
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
    """Local file systems have room for logs and code, and inodes.

    Thresholds: 80 % and 85 % of space and inodes, as in facebookresearch/gcm check_storage.
    """
    found = Findings()
    ctx.doing(f"statvfs {mount}")
    stat = os.statvfs(ctx.path(mount))
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
