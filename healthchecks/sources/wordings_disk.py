"""How the kernel says that disks other than NVMe, arrays and local file systems are in trouble: one
table for each kind of event."""

from __future__ import annotations

from healthchecks.frame.check import Status
from healthchecks.sources.kernel_patterns import KernelLogPattern, Wording

# What block/blk-core.c's blk_errors calls it; with `operation not supported` nothing is lost.
BLOCK_ERRORS = (
    r"(?:I/O|timeout|device offline|recoverable transport|protection|device resource"
    r"|critical (?:medium|target|nexus|space allocation)) error, dev "
)
# DISCARD, SECURE_ERASE and WRITE_ZEROES that a disk does not know are no errors.
NO_DATA = r"(?!\S+, sector \d+ op 0x[359]:)"
_DISKS = r"((?:sd[a-z]+|hd[a-z]|x?vd[a-z]+|dm-|md|mmcblk|pmem)\d*p?\d*)"  # no CDs, no loops
_DEVICE = r"((?!loop)[\w!-]{1,31})"  # images that users bring (Apptainer's overlays) are theirs
_REPLACE = "look at the disk (smartctl -a) and its cable; replace it"
DISK_PATTERNS = (
    KernelLogPattern(
        name="shut_down",
        wordings=(
            Wording(
                source="XFS, Linux 3.x to 6.12, fs/xfs/xfs_fsops.c xfs_do_force_shutdown",
                substring="XFS (",
                regex=rf"XFS \({_DEVICE}\): (?:Corruption of (?:in-memory data|on-disk metadata)"
                r"(?: \(0x\d+\))? detected[^\n]*?\. {1,2}Shutting down filesystem"
                r"|(?:I/O Error Detected|Log I/O Error[ \w()]*Detected|User initiated shutdown)"
                r"[^\n]*?\. {1,2}Shutting down filesystem|[Ll]og I/O error -\d|"
                r"Filesystem has been shut down due to log error)",
                example="XFS (nvme0n1p1): Corruption of in-memory data detected.  Shutting down "
                "filesystem",
            ),
            Wording(
                source="ext4, Linux 2.6 to 6.12, fs/ext4/super.c ext4_handle_error",
                substring="Remounting filesystem read-only",
                regex=rf"EXT[234]-fs \({_DEVICE}\): Remounting filesystem read-only",
                example="EXT4-fs (sda2): Remounting filesystem read-only",
            ),
            Wording(
                source="jbd2, Linux 2.6 to 6.12, fs/jbd2/journal.c jbd2_journal_abort",
                substring="Aborting journal on device ",
                regex=r"Aborting journal on device ((?!loop)[\w!]{1,24})-\d+\.",
                example="Aborting journal on device sda2-8.",
            ),
            Wording(
                source="Btrfs, Linux 3.x to 6.12, fs/btrfs/super.c btrfs_handle_error",
                substring="forced readonly",
                regex=rf"BTRFS info \(device {_DEVICE}(?: state \w+)?\): forced readonly",
                example="BTRFS info (device nvme1n1): forced readonly",
            ),
        ),
        status=Status.FAIL,
        what="the file system was shut down after an error: nothing can be written there",
        fix="drain the node; look at the disk below, unmount the file system and repair it "
        "(xfs_repair, e2fsck, btrfs check), or format it again",
        until_boot=True,
    ),
    KernelLogPattern(
        name="fs_error",
        wordings=(
            Wording(
                source="ext4, Linux 2.6 to 6.12, fs/ext4/super.c __ext4_error",
                substring="EXT",
                regex=rf"EXT[234]-fs error \(device {_DEVICE}\): \w+:\d+: ",
                example="EXT4-fs error (device sda2): ext4_lookup:1853: inode #12: comm python3: "
                "deleted inode referenced: 13",
            ),
            Wording(
                source="XFS, Linux 3.x to 6.12, fs/xfs/xfs_error.c xfs_verifier_error",
                substring="XFS (",
                regex=rf"XFS \({_DEVICE}\): (?:Metadata (?:CRC error|corruption) detected at "
                r"|Internal error \S+ at line \d)",
                example="XFS (nvme0n1p1): Metadata CRC error detected at xfs_agf_read_verify+0xd0",
            ),
        ),
        status=Status.WARN,
        what="the file system found an error in itself",
        fix="unmount it at the next service and check it (e2fsck, xfs_repair -n)",
    ),
    KernelLogPattern(
        name="io_error",
        wordings=(
            Wording(
                source="Linux 4.x to 6.12, block/blk-mq.c blk_print_req_error; before 5.16 with "
                "its function's name",
                substring=" error, dev ",
                regex=r"(?:blk_update_request: |print_req_error: )?"
                + BLOCK_ERRORS
                + NO_DATA
                + _DISKS
                + r", sector \d",
                example="I/O error, dev sda, sector 2048 op 0x0:(READ) flags 0x80700 phys_seg 1",
            ),
            Wording(
                source="Linux 3.x to 6.12, fs/buffer.c buffer_io_error",
                substring="Buffer I/O error on dev",
                regex=rf"Buffer I/O error on dev(?:ice)? {_DISKS}, logical block \d",
                example="Buffer I/O error on dev dm-0, logical block 0, lost async page write",
            ),
            Wording(
                source="Linux, drivers/ata/libata-eh.c ata_eh_link_report",
                substring=": exception Emask 0x",
                regex=r"(ata\d+)(?:\.\d+)?: exception Emask 0x[\da-f]+ SAct 0x[\da-f]+ SErr 0x",
                example="ata1.00: exception Emask 0x0 SAct 0x0 SErr 0x0 action 0x6 frozen",
            ),
            Wording(
                source="Linux 3.x to 6.12, drivers/scsi/scsi_logging.c",
                substring="Sense Key : ",
                regex=r"sd \d+:\d+:\d+:\d+: \[(sd[a-z]+)\] (?:tag#\d+ )?Sense Key : "
                r"(?:Medium|Hardware) Error",
                example="sd 0:0:0:0: [sda] tag#12 Sense Key : Medium Error [current] ",
            ),
        ),
        status=Status.WARN,
        what="could not be read or written",
        fix=_REPLACE,
    ),
    KernelLogPattern(
        name="member_failed",
        wordings=(
            Wording(
                source="Linux 2.6 to 6.12, drivers/md/raid1.c, raid10.c, raid5.c raid*_error",
                substring="Disk failure on ",
                regex=r"md/raid\d*:(md\w+): Disk failure on \w+, disabling device",
                example="md/raid1:md0: Disk failure on sda1, disabling device.",
            ),
        ),
        status=Status.WARN,
        what="a member failed",
        fix="mdadm --detail; replace the disk, mdadm --add",
    ),
    KernelLogPattern(
        name="path_failed",
        wordings=(
            Wording(
                source="Linux 4.x to 6.12, drivers/md/dm-mpath.c fail_path",
                substring="device-mapper: multipath: ",
                regex=r"device-mapper: multipath: (\d+:\d+): Failing path \S+\.",
                example="device-mapper: multipath: 253:0: Failing path 8:16.",
            ),
        ),
        status=Status.WARN,
        what="a path failed",
        fix="multipath -ll; look at the link and the target of that path",
    ),
)
