"""Sick, in other words: kernel lines of NICs, disks, file systems and GPUs."""

from __future__ import annotations

from checks import both
from healthy import logged
from sick_rows import FAIL, WARN, lines, rows, xid

from tests.hardware.tree import GPU_BDFS

_SWITCH = "nvidia-nvswitch2: SXid (PCI:0000:c1:00.0): "
DRIVERS = [
    *lines(
        "nic.kmsg",
        (
            FAIL,
            "firmware",
            "Intel ice, Linux 6.13",
            "ice 0000:4b:00.0: Firmware recovery mode detected. Limiting functionality. Refer to "
            "the Intel(R) Ethernet Adapters and Devices User Guide for details",
        ),
        (
            FAIL,
            "firmware",
            "Intel i40e, Linux 5.x",
            "i40e 0000:4b:00.0: Firmware recovery mode detected. Limiting functionality.",
        ),
        (
            FAIL,
            "firmware",
            "Intel ixgbe",
            "ixgbe 0000:4b:00.0: Firmware recovery mode detected. Limiting functionality. Refer "
            "to the Intel(R) Ethernet Adapters and Devices User Guide",
        ),
        (
            FAIL,
            "firmware",
            "Intel ice, ice_main.c ice_rebuild",
            "ice 0000:4b:00.0: Rebuild failed, unload and reload driver",
        ),
        (
            FAIL,
            "firmware",
            "mlx4, catas.c",
            "mlx4_core 0000:21:00.0: Internal error detected:",
        ),
        (
            FAIL,
            "got no answer",
            "mlx4, cmd.c",
            "mlx4_core 0000:21:00.0: command 0x1f timed out (go bit not cleared)",
        ),
        (
            FAIL,
            "got no answer",
            "Broadcom, bnxt_hwrm.c",
            "bnxt_en 0000:3d:00.0 enp61s0f0np0: Error (timeout: 500015) msg {0x16 0x1bb} len:0",
        ),
        (
            FAIL,
            "got no answer",
            "Broadcom, before it has a name",
            "bnxt_en 0000:3d:00.0 (unnamed net_device) (uninitialized): Error (timeout: 5000015) "
            "msg {0x0 0x0} len:0",
        ),
        (
            WARN,
            "was reset",
            "Broadcom, Linux 5.4 to 5.12",
            "bnxt_en 0000:3d:00.0 enp61s0f0np0: Firmware fatal reset event received",
        ),
        (
            WARN,
            "was reset",
            "Broadcom, Linux 5.13",
            "bnxt_en 0000:3d:00.0 enp61s0f0np0: Firmware Fatal reset event, data1: 0x4, data2: "
            "0x0, min wait 4000 ms, max wait 6000 ms",
        ),
        (
            WARN,
            "a queue",
            "Intel ice, ice_tx_timeout",
            "ice 0000:4b:00.0 ens1f0: tx_timeout: VSI_num: 7, Q 3, NTC: 0x1, HW_HEAD: 0x0, NTU: "
            "0x2, INT: 0x0",
        ),
        (
            WARN,
            "a queue",
            "AWS ENA, ena_netdev.c",
            "ena 0000:00:05.0 ens5: Keep alive watchdog timeout.",
        ),
        (
            WARN,
            "a queue",
            "AWS ENA, NETDEV WATCHDOG",
            "NETDEV WATCHDOG: ens5 (ena): transmit queue 3 timed out",
        ),
        (
            WARN,
            "a queue",
            "Google gve, Linux 6.8",
            "gvnic 0000:00:0a.0 enp0s10: NETDEV WATCHDOG: CPU: 3: transmit queue 1 timed out 6012 "
            "ms",
        ),
        (
            FAIL,
            "got no answer",
            "AWS EFA, efa_com.c",
            "infiniband rdmap80s0: The device didn't send any completion for admin cmd "
            "CREATE_QP(1) status 0 (ctx 0x1, sq producer: 1, sq consumer: 0, cq consumer: 0)",
        ),
        (
            WARN,
            "misbehaved",
            "Intel ice, ice_handle_mdd_event",
            "ice 0000:4b:00.0: Malicious Driver Detection event 6 on TX queue 3 PF# 0 VF# 0",
        ),
        (
            FAIL,
            "firmware",
            "mlx5, health.c mlx5_handle_bad_state",
            "mlx5_core 0000:18:00.0: mlx5_handle_bad_state:250:(pid 0): starting teardown "
            "because of a bad device state: NIC IFC still 7 after 1000ms",
        ),
        (
            WARN,
            "a transceiver or cable",
            "mlx5, events.c, a cable of too much power",
            "mlx5_core 0000:18:00.0: Port module event[error]: module 3, Cable error, Power "
            "budget exceeded",
        ),
    ),
    *lines(
        "nvme",
        (
            WARN,
            "in time",
            "Linux 4.17: an interrupt that was lost",
            "nvme nvme0: I/O 12 QID 3 timeout, completion polled",
        ),
        (
            WARN,
            "in time",
            "Linux 6.x: an interrupt that was lost",
            "nvme nvme0: I/O tag 12 (100c) opcode 0x2 (I/O Cmd) QID 3 timeout, completion polled",
        ),
        (
            WARN,
            "in time",
            "Linux 6.x, NVMe over TCP",
            "nvme nvme1: I/O tag 12 (100c) type 4 opcode 0x2 (I/O Cmd) QID 3 timeout",
        ),
        (WARN, "in time", "Linux 5.x, NVMe over RDMA", "nvme nvme1: I/O 12 QID 3 timeout"),
        (
            WARN,
            "went down",
            "Linux 4.x, pci.c nvme_error_detected",
            "nvme nvme0: frozen state error detected, reset controller",
        ),
        (
            WARN,
            "went down",
            "Linux 6.0, core.c, an asynchronous event",
            "nvme nvme0: resetting controller due to AER",
        ),
        (
            WARN,
            "went down",
            "Linux 6.2, core.c",
            "nvme nvme0: resetting controller due to persistent internal error",
        ),
        (
            WARN,
            "read or written",
            "Linux 5.x, a path of many",
            "blk_update_request: recoverable transport error, dev nvme0c1n1, sector 8 op "
            "0x1:(WRITE) flags 0x2000000",
        ),
        (
            WARN,
            "read or written",
            "Linux 6.x, a device that is gone",
            "device offline error, dev nvme0n1, sector 8 op 0x0:(READ) flags 0x0 phys_seg 1",
        ),
        (
            WARN,
            "read or written",
            "Linux 5.x, no room left behind thin provisioning",
            "critical space allocation error, dev nvme0n1, sector 8 op 0x1:(WRITE) flags 0x0",
        ),
        (
            WARN,
            "read or written",
            "Linux 6.8, write",
            "nvme0n1: Write(0x1) @ LBA 4096, 256 blocks, Internal Error (sct 0x0 / sc 0x6) MORE",
        ),
        (
            FAIL,
            "did not come back",
            "Linux 4.x, initialisation",
            "nvme nvme0: Device not ready; aborting initialisation, CSTS=0x0",
        ),
    ),
    *lines(
        "disk.kmsg",
        (
            WARN,
            "sda: could not be read or written",
            "Linux 5.16, a SATA disk",
            "I/O error, dev sda, sector 2048 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 0",
        ),
        (
            WARN,
            "vda: could not be read or written",
            "Linux 5.x, virtio",
            "blk_update_request: I/O error, dev vda, sector 2048 op 0x1:(WRITE) flags 0x0",
        ),
        (
            WARN,
            "dm-0: could not be read or written",
            "Linux 6.x, a mapped device",
            "Buffer I/O error on dev dm-0, logical block 0, lost async page write",
        ),
        (
            WARN,
            "could not be read or written",
            "libata",
            "ata1.00: exception Emask 0x0 SAct 0x0 SErr 0x0 action 0x6 frozen",
        ),
        (
            WARN,
            "could not be read or written",
            "SCSI, scsi_logging.c",
            "sd 0:0:0:0: [sda] tag#12 Sense Key : Medium Error [current] ",
        ),
        (
            FAIL,
            "nvme0n1p1: the file system was shut down",
            "XFS, Linux 5.x",
            "XFS (nvme0n1p1): Corruption of in-memory data detected.  Shutting down filesystem",
        ),
        (
            FAIL,
            "nvme0n1p1: the file system was shut down",
            "XFS, Linux 6.x",
            "XFS (nvme0n1p1): Corruption of in-memory data (0x8) detected at xfs_trans_cancel+0x1 "
            "(fs/xfs/xfs_trans.c:1097).  Shutting down filesystem.",
        ),
        (
            FAIL,
            "dm-3: the file system was shut down",
            "XFS, its log",
            "XFS (dm-3): log I/O error -5",
        ),
        (
            FAIL,
            "md0: the file system was shut down",
            "XFS, Linux 4.x",
            "XFS (md0): I/O Error Detected. Shutting down filesystem",
        ),
        (
            FAIL,
            "sda2: the file system was shut down",
            "ext4",
            "EXT4-fs (sda2): Remounting filesystem read-only",
        ),
        (
            FAIL,
            "sda2: the file system was shut down",
            "ext4, its journal",
            "Aborting journal on device sda2-8.",
        ),
        (
            FAIL,
            "nvme1n1: the file system was shut down",
            "Btrfs",
            "BTRFS info (device nvme1n1): forced readonly",
        ),
        (
            FAIL,
            "nvme1n1: the file system was shut down",
            "Btrfs, Linux 6.x, with its state",
            "BTRFS info (device nvme1n1 state E): forced readonly",
        ),
        (
            WARN,
            "sda2: the file system found an error",
            "ext4, Linux 3.x to 6.x",
            "EXT4-fs error (device sda2): ext4_lookup:1853: inode #12: comm python3: deleted "
            "inode referenced: 13",
        ),
        (
            WARN,
            "nvme0n1p1: the file system found an error",
            "XFS",
            "XFS (nvme0n1p1): Metadata CRC error detected at xfs_agf_read_verify+0xd0/0x100, "
            "xfs_agf block 0x1",
        ),
        (
            WARN,
            "md0: a member failed",
            "Linux md, raid1.c",
            "md/raid1:md0: Disk failure on sda1, disabling device.",
        ),
        (
            WARN,
            "253:0: a path failed",
            "dm-multipath",
            "device-mapper: multipath: 253:0: Failing path 8:16.",
        ),
    ),
    *lines(
        "storage.kmsg",
        (
            WARN,
            "fs1-OST0001: the server of a file system did not answer",
            "Lustre 2.12 to 2.15",
            "Lustre: fs1-OST0001-osc-ffff9d6153c91000: Connection to fs1-OST0001 (at "
            "192.168.14.178@tcp) was lost; in progress operations using this service will wait "
            "for recovery to complete",
        ),
        (
            WARN,
            "fs1-MDT0000: the server of a file system did not answer",
            "Lustre, metadata over InfiniBand",
            "Lustre: fs1-MDT0000-mdc-ffff88203810d800: Connection to fs1-MDT0000 (at "
            "172.31.126.88@o2ib) was lost; in progress operations using this service will wait "
            "for recovery to complete",
        ),
        (
            WARN,
            "MGC10.130.93.11@o2ib: the server of a file system did not answer",
            "Lustre, its management server",
            "LustreError: 166-1: MGC10.130.93.11@o2ib: Connection to MGS (at 10.130.93.10@o2ib) "
            "was lost; in progress operations using this service will fail",
        ),
        (
            WARN,
            "fs1-OST0003: threw this node out",
            "Lustre",
            "LustreError: 167-0: fs1-OST0003-osc-ffff9d6153c91000: This client was evicted by "
            "fs1-OST0003; in progress operations using this service will fail.",
        ),
        (
            FAIL,
            "client failed for good",
            "Lustre, LBUG",
            "LustreError: 1234:0:(osc_cache.c:2342:osc_extent_finish()) LBUG",
        ),
        (
            FAIL,
            "client failed for good",
            "Lustre, an assertion",
            "LustreError: 1234:0:(file.c:3030:ll_file_flock()) ASSERTION( lli != NULL ) failed: ",
        ),
        (
            WARN,
            "172.31.126.87@o2ib: the server of a file system did not answer",
            "LNet over InfiniBand",
            "LNet: 2431:0:(o2iblnd_cb.c:3174:kiblnd_check_conns()) Timed out tx for "
            "172.31.126.87@o2ib: 403055 seconds",
        ),
        (
            WARN,
            "mds0: the server of a file system did not answer",
            "CephFS, Linux 3.x to 6.6",
            "ceph: mds0 hung",
        ),
        (
            WARN,
            "mds1: the server of a file system did not answer",
            "CephFS, Linux 6.7, with its cluster",
            "ceph: [4a1f7f2c-9a5f-11ee-9c4e-000000000000 24187]: mds1 hung",
        ),
        (
            WARN,
            "the server of a file system did not answer",
            "CephFS, its monitors, msgr1",
            "libceph: mon2 (1)10.72.36.245:40083 session lost, hunting for new mon",
        ),
        (
            WARN,
            "the server of a file system did not answer",
            "CephFS, its monitors, before Linux 5.7",
            "libceph: mon0 10.0.0.8:6789 session lost, hunting for new mon",
        ),
        (
            WARN,
            "mds0: threw this node out",
            "CephFS, mds_client.c",
            "ceph: mds0 reconnect denied",
        ),
        (
            WARN,
            "10.0.0.5: the server of a file system did not answer",
            "CIFS, Linux 5.4",
            "CIFS: VFS: \\\\10.0.0.5 has not responded in 180 seconds. Reconnecting...",
        ),
        (
            WARN,
            "filer: the server of a file system did not answer",
            "CIFS, Linux 4.x",
            "CIFS VFS: Server filer has not responded in 120 seconds. Reconnecting...",
        ),
        (
            WARN,
            "beegfs-storage node01 [ID: 2]: the server of a file system did not answer",
            "BeeGFS 7, MessagingTk.c",
            "beegfs: python3(4242): Messaging (RPC): Retrying communication with node: "
            "beegfs-storage node01 [ID: 2]",
        ),
        (
            WARN,
            "10.0.0.7: the server of a file system did not answer",
            "OpenAFS",
            "afs: Lost contact with file server 10.0.0.7 in cell example.org (code -1) (all "
            "multi-homed ip addresses down for the server)",
        ),
    ),
    *rows(
        "storage.kmsg",
        (
            WARN,
            "fs1-OST0002: the server",
            "Lustre: one of two came back",
            both(
                logged(
                    *(
                        f"Lustre: fs1-OST000{n}-osc-ffff9d6153c91000: Connection to fs1-OST000{n} "
                        "(at 10.0.0.1@tcp) was lost; in progress operations using this service "
                        "will wait for recovery to complete"
                        for n in (1, 2)
                    ),
                    ago_s=900,
                ),
                logged(
                    "Lustre: fs1-OST0001-osc-ffff9d6153c91000: Connection restored to  (at "
                    "10.0.0.1@tcp)",
                    ago_s=800,
                ),
            ),
        ),
    ),
    *rows(
        "nfs.passive",
        (
            WARN,
            "state manager",
            "Linux 3.x to 6.x, nfs4state.c: a lease that can't be renewed",
            logged(
                "NFS: state manager: check lease failed on NFSv4 server 10.0.0.5 with error 13",
                ago_s=60,
            ),
        ),
        (
            WARN,
            "state manager",
            "Linux, nfs4state.c: a session",
            logged(
                "NFS: state manager: lease expired failed on NFSv4 server 10.0.0.5 with error 5",
                ago_s=60,
            ),
        ),
    ),
    *lines(
        "xid",
        (
            FAIL,
            "Xid 149 NETIR_LINK_EVT.37",
            "driver 570, GB200: the peer's device",
            xid(
                149,
                "NETIR_LINK_EVT Fatal XC0 i0 Link 00 (0x025001c6 0x00000000 0x00000000 0x00000000 "
                "0x00000000 0x00000000)",
            ),
        ),
        (
            FAIL,
            "Xid 149 NETIR",
            "driver 570, GB200: no link named",
            xid(149, "NETIR Fatal XC0 i0 Link -1 (0x000fe406 0x00000000 0x00000000 0x00000000)"),
        ),
        (
            FAIL,
            "Xid 145 RLW_REMAP",
            "driver 575, a bit that asks for a reset",
            xid(145, "RLW_REMAP Fatal XC0 i0 Link 03 (0x00000004 0x00000040 0x0 0x0 0x0 0x0)"),
        ),
        (
            WARN,
            "SXid 24007",
            "driver 535, NVSwitch of H100",
            _SWITCH + "24007, Non-fatal, Link 42 sourcetrack TCEN0 crumbstore DBE (First)",
        ),
        (
            WARN,
            "SXid 12028",
            "driver 470, NVSwitch of A100: an access that is not allowed",
            _SWITCH + "12028, Non-fatal, Link 32 egress non-posted PRIV error (First)",
        ),
        (
            WARN,
            "SXid 22013",
            "driver 535, NVSwitch of H100: Minion",
            _SWITCH + "22013, Non-fatal, Link 27 Minion Link DLREQ interrupt",
        ),
        (
            FAIL,
            "SXid 19084",
            "driver 470, NVSwitch of A100",
            _SWITCH + "19084, Fatal, Link 45 AN1 Heartbeat Timeout Error (First)",
        ),
        (
            FAIL,
            "SXid 14017",
            "driver 550, NVSwitch of H100",
            _SWITCH + "14017, Fatal, Link 16 AN1 RSP Data Timeout (First)",
        ),
        (
            FAIL,
            "Xid 120",
            "driver 550, GSP",
            xid(120, "GSP task exception: HART load access fault (5) (cause:0x5) @ pc:0x1"),
        ),
        (
            FAIL,
            "Xid 79",
            "driver 390: one line of two",
            f"NVRM: GPU at PCI:{GPU_BDFS[3]}: GPU has fallen off the bus.",
        ),
        (
            FAIL,
            "Xid 140",
            "driver 550, an ECC error in a place unknown",
            xid(140, "pid='<unknown>', name=<unknown>, An uncorrectable ECC error was detected"),
        ),
        (
            WARN,
            "by pt_main_thread, pid 1797828",
            "driver 535, PyTorch's own name of its thread",
            xid(
                31,
                "pid=1797828, name=pt_main_thread, Ch 00000008, intr 00000000. MMU Fault: ENGINE "
                "GRAPHICS GPCCLIENT_T1_2 faulted @ 0x7f21_c0de0000. Fault is of type FAULT_PDE "
                "ACCESS_TYPE_VIRT_READ",
            ),
        ),
    ),
]
