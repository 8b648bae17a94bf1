"""What the kernel wrote about PCIe, disks, and clients of shared file systems."""

from __future__ import annotations

from healthchecks.frame.check import Findings, Result, Skip, check
from healthchecks.frame.context import Ctx
from healthchecks.sources.kernel_patterns import WindowH, report_matches
from healthchecks.sources.mounts import NFS, table
from healthchecks.sources.wordings_disk import DISK_PATTERNS
from healthchecks.sources.wordings_pcie import PCIE_PATTERNS
from healthchecks.sources.wordings_storage import STORAGE_PATTERNS


@check("pcie.kmsg", tags={"preflight", "running"})
def pcie_kmsg(ctx: Ctx, *, window_h: WindowH = 24.0) -> Result:
    """No PCIe slot lost its card, and no port or device reports what could not be corrected.

    Hot-plug removals (pciehp), uncorrected errors (AER, DPC) and devices that no longer answer, as
    the kernel logs them: WARN, since what is missing fails a check of its own (gpu.count,
    ib.missing, nvme). NICs are nic.kmsg's.
    """
    found = Findings()
    report_matches(ctx, PCIE_PATTERNS, window_h * 3600, found)
    return found.result("nothing about PCIe in the kernel's log")


@check("disk.kmsg", tags={"preflight", "running"})
def disk_kmsg(ctx: Ctx, *, window_h: WindowH = 24.0) -> Result:
    """No local file system was shut down, and no disk but NVMe (see nvme) has errors.

    A file system that the kernel shut down (XFS, ext4, Btrfs) is FAIL until the node boots: XFS
    then still looks mounted and writable. Errors of disks and arrays are WARN. As in
    leptonai/gpud's disk component.
    """
    found = Findings()
    report_matches(ctx, DISK_PATTERNS, window_h * 3600, found)
    return found.result("nothing about disks and file systems in the kernel's log")


@check("storage.kmsg", tags={"preflight", "running"})
def storage_kmsg(ctx: Ctx, *, window_h: WindowH = 1.0) -> Result:
    """No client of a shared file system (Lustre, CephFS, CIFS, BeeGFS, AFS) misses its server.

    A server that did not answer is WARN, and shared with all nodes that use it, until the client
    says that it is back; so is a client that was thrown out. A client that failed for good (LBUG)
    is FAIL until the node boots. Of NFS nfs.passive tells; whether mounts answer, nfs.alive. The
    window is superv's own.
    """
    found = Findings()
    report_matches(ctx, STORAGE_PATTERNS, window_h * 3600, found)
    if not found.metrics and all(m.fstype in NFS for m in table(ctx).network()):
        raise Skip("no shared file system but NFS is mounted")
    return found.result("nothing about shared file systems in the kernel's log")
