"""Kernel lines with which nothing is wrong: no check may WARN or FAIL of any.

Each with where it is from; a row of several lines is one event.
"""

from __future__ import annotations

from sick_rows import GPU

_LINK = "mlx5_core 0000:18:00.0: "
HARMLESS: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (source, lines if isinstance(lines, tuple) else (lines,))
    for source, lines in (
        # --- PCIe
        (
            "Linux, pci.c: an idle GPU at its first generation",
            "pci 0000:1b:00.0: 63.008 Gb/s available PCIe bandwidth, limited by 2.5 GT/s PCIe x16 "
            "link at 0000:17:01.0 (capable of 504.112 Gb/s with 32.0 GT/s PCIe x16 link)",
        ),
        (
            "Linux, aer.c: corrected errors, counted elsewhere",
            (
                "pcieport 0000:17:01.0: AER: Corrected error received: 0000:17:01.0",
                "pcieport 0000:17:01.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, "
                "(Receiver ID)",
                "pcieport 0000:17:01.0:   device [8086:347a] error status/mask=00000001/00002000",
                "pcieport 0000:17:01.0:    [ 0] RxErr                  (First)",
            ),
        ),
        (
            "Linux 6.11, aer.c: corrected errors in new words",
            (
                "pcieport 0000:17:01.0: AER: Correctable error message received from 0000:18:00.0",
                "mlx5_core 0000:18:00.0: PCIe Bus Error: severity=Correctable, type=Physical "
                "Layer, (Receiver ID)",
            ),
        ),
        (
            "Linux, pciehp: a slot at boot, and a card that is put in",
            (
                "pcieport 0000:17:01.0: pciehp: Slot #3 AttnBtn- PwrCtrl- MRL- AttnInd- PwrInd- "
                "HotPlug+ Surprise+ Interlock- NoCompl+ IbPresDis- LLActRep+",
                "pcieport 0000:17:01.0: pciehp: Slot(3): Card present",
                "pcieport 0000:17:01.0: pciehp: Slot(3): Link Up",
            ),
        ),
        (
            "Linux, pciehp: a card that was taken out and put in again",
            (
                "pcieport 0000:17:01.0: pciehp: Slot(3): Link Down",
                "pcieport 0000:17:01.0: pciehp: Slot(3): Card present",
            ),
        ),
        (
            "Linux, aer.c: an error from which the device recovered",
            "pcieport 0000:17:01.0: AER: device recovery successful",
        ),
        ("Linux, dpc.c: at boot", "pcieport 0000:17:01.0: DPC: enabled with IRQ 29"),
        (
            "Linux, pci.c: a reset that takes its time",
            "nvidia 0000:1b:00.0: not ready 1023ms after FLR; waiting",
        ),
        (
            "Linux, pci.c: a device that sleeps",
            "pci 0000:1b:00.1: D3cold wake: enabling device (0000 -> 0002)",
        ),
        # --- processors and memory
        (
            "Linux x86, mce/core.c: what follows a corrected error",
            (
                "mce: [Hardware Error]: PROCESSOR 0:806f8 TIME 1764000000 SOCKET 0 APIC 0 "
                "microcode 2b0004b1",
                "mce: [Hardware Error]: Run the above through 'mcelog --ascii'",
            ),
        ),
        (
            "Linux, mce_amd.c: a corrected error",
            (
                "[Hardware Error]: Corrected error, no action required.",
                "[Hardware Error]: CPU:2 (19:11:1) MC17_STATUS[Over|CE|MiscV|AddrV|-|-|SyndV|CECC|"
                "-|-|-]: 0xdc2040000000011b",
                "[Hardware Error]: Error Addr: 0x00000001c0f2a380",
                "[Hardware Error]: IPID: 0x0000009600150f00, Syndrome: 0x000001000a801203",
                "[Hardware Error]: Unified Memory Controller Ext. Error Code: 0, DRAM ECC error.",
                "[Hardware Error]: cache level: L3/GEN, tx: GEN, mem-tx: RD",
            ),
        ),
        (
            "Linux, EDAC: corrected errors, judged by their rate",
            "EDAC MC0: 3 CE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0 (channel:1 slot:0 "
            "page:0x1c0f2a3 offset:0x0 grain:32 syndrome:0x0 -  err_code:0x0101:0x0091)",
        ),
        (
            "Linux, EDAC at boot",
            (
                "EDAC MC: Ver: 3.0.0",
                "EDAC MC3: Giving out device to module i10nm_edac controller Intel_10nm Socket#1 "
                "IMC#3: DEV 0000:ff:0c.0 (INTERRUPT)",
                "EDAC amd64: F19h_M10h detected (node 0).",
                "EDAC MC: UMC0 chip selects:",
                "EDAC ghes: This system has 32 DIMM sockets.",
            ),
        ),
        (
            "Linux, cper.c: what a firmware tells, and needs nothing",
            (
                "{7}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 2",
                "{7}[Hardware Error]: event severity: info",
                "{7}[Hardware Error]:  Error 0, type: informational",
                "{7}[Hardware Error]:   section type: unknown, "
                "6d5244f2-2712-11ec-bea7-cb3fdb95c786",
            ),
        ),
        (
            "Linux, cper.c: a corrected error of PCIe",
            (
                "{8}[Hardware Error]: It has been corrected by h/w and requires no further action",
                "{8}[Hardware Error]: event severity: corrected",
                "{8}[Hardware Error]:   section_type: PCIe error",
                "{8}[Hardware Error]:   device_id: 0000:17:01.0",
            ),
        ),
        (
            "Linux x86, mce: storms that are over",
            (
                "mce: CMCI storm detected: switching to poll mode",
                "mce: CMCI storm subsided: switching to interrupt mode",
            ),
        ),
        (
            "Intel therm_throt.c: heat that is over",
            (
                "mce: CPU3: Core temperature above threshold, cpu clock throttled (total events "
                "= 12)",
                "mce: CPU3: Core temperature/speed normal",
            ),
        ),
        (
            "Intel therm_throt.c, Linux 5.6: heat that is over",
            (
                "CPU9: Package temperature is above threshold, cpu clock is throttled (total "
                "events = 7)",
                "CPU9: Package temperature is normal (total events = 7)",
            ),
        ),
        ("Linux x86 at boot", "mce: CPU0: Thermal monitoring enabled (TM1)"),
        ("Linux at boot", "thermal_sys: Registered thermal governor 'step_wise'"),
        (
            "Linux x86, nmi.c: of performance counters",
            (
                "Uhhuh. NMI received for unknown reason 2d on CPU 3.",
                "Dazed and confused, but trying to continue",
            ),
        ),
        # --- the kernel
        (
            "Linux, kernel/workqueue.c 6.5: a hint to developers",
            "workqueue: drm_fb_helper_damage_work hogged CPU for >10000us 4 times, consider "
            "switching to WQ_UNBOUND",
        ),
        ("Linux, sched/rt.c", "sched: RT throttling activated"),
        ("Linux, nmi.c", "INFO: NMI handler (perf_event_nmi_handler) took too long to run: 1.2 ms"),
        (
            "Linux, UBSAN of distributions",
            "UBSAN: array-index-out-of-bounds in drivers/net/ethernet/x.c:10:2",
        ),
        (
            "Linux, panic.c: a warning is no oops",
            (
                "------------[ cut here ]------------",
                "WARNING: CPU: 3 PID: 4242 at net/core/dev.c:1234 x+0x1/0x2",
                "---[ end trace 0000000000000000 ]---",
            ),
        ),
        (
            "Linux, mm/oom_kill.c: what goes with a kill that is counted",
            (
                "oom_reaper: reaped process 4242 (python3), now anon-rss:0kB, file-rss:0kB",
                "Tasks in /slurm/uid_1000/job_7 are going to be killed due to memory.oom.group set",
            ),
        ),
        ("Linux, watchdog.c at boot", "NMI watchdog: Enabled. Permanently consumes one hw-PMU."),
        (
            "Linux, tree.c at boot",
            "rcu: \tRCU restricting CPUs from NR_CPUS=8192 to nr_cpu_ids=240.",
        ),
        (
            "Linux, hung_task.c: the hint below a line",
            '"echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.',
        ),
        (
            "Linux, hung_task.c: no more will be told",
            "Future hung task reports are suppressed, see sysctl kernel.hung_task_warnings",
        ),
        ("Linux x86, clocksource", "clocksource: tsc: mask: 0xffffffffffffffff max_cycles: 0x1"),
        # --- disks and file systems
        (
            "nvme: tools that ask for a page that is not there",
            "nvme0: Get Log Page(0x2), Invalid Field in Command (sct 0x0 / sc 0x2) DNR",
        ),
        (
            "Linux, blk-mq.c: a disk that can't discard, or zero by itself",
            (
                "operation not supported error, dev nvme0n1, sector 0 op 0x9:(WRITE_ZEROES) flags "
                "0x8000000",
                "critical target error, dev nvme0n1, sector 2048 op 0x3:(DISCARD) flags 0x800",
                "blk_update_request: critical target error, dev nvme1n1, sector 8 op "
                "0x9:(WRITE_ZEROES) flags 0x8000800",
            ),
        ),
        (
            "nvme at boot",
            (
                "nvme nvme0: pci function 0000:5e:00.0",
                "nvme nvme0: Shutdown timeout set to 8 seconds",
                "nvme nvme0: allocated 64 MiB host memory buffer.",
                "nvme nvme0: ctrl supports HMB but not enabled",
                "nvme nvme0: Ignoring bogus Namespace Identifiers",
                "nvme nvme0: globally duplicate IDs for nsid 1",
                "nvme nvme0: using unchecked data buffer",
            ),
        ),
        (
            "nvme: a disk that came back after a bus error",
            "nvme nvme0: restart after slot reset",
        ),
        (
            "file systems that are mounted and unmounted",
            (
                "EXT4-fs (sda2): mounted filesystem 0b2e1b6c-5c1e-4b8a-9c3e-000000000000 r/w with "
                "ordered data mode. Quota mode: none.",
                "EXT4-fs (sda2): re-mounted. Opts: errors=remount-ro",
                "EXT4-fs (sda1): recovery complete",
                "XFS (nvme0n1p1): Mounting V5 Filesystem",
                "XFS (nvme0n1p1): Starting recovery (logdev: internal)",
                "XFS (nvme0n1p1): Ending recovery (logdev: internal)",
                "XFS (nvme0n1p1): Unmounting Filesystem",
                "BTRFS info (device nvme1n1): enabling ssd optimizations",
                "md/raid1:md0: active with 2 out of 2 mirrors",
                "loop0: detected capacity change from 0 to 8",
            ),
        ),
        (
            "ext4 and XFS of an image that a user brought (Apptainer)",
            (
                "EXT4-fs (loop5): Remounting filesystem read-only",
                "Aborting journal on device loop5-8.",
                "XFS (loop6): log I/O error -5",
                "EXT4-fs error (device loop5): ext4_lookup:1853: inode #12: comm python3: x",
            ),
        ),
        (
            "IOMMUs at boot",
            (
                "DMAR: Host address width 52",
                "DMAR: [Firmware Bug]: No firmware reserved region can cover this RMRR",
                "DMAR-IR: Enabled IRQ remapping in x2apic mode",
                "AMD-Vi: Interrupt remapping enabled",
                "pci 0000:1b:00.0: Adding to iommu group 42",
            ),
        ),
        (
            "bnxt: a command without an answer, then a new start of the driver",
            (
                "bnxt_en 0000:3d:00.0 enp61s0f0np0: Error (timeout: 500015) msg {0x16 0x1bb} len:0",
                "bnxt_en 0000:3d:00.0 eth0: Broadcom BCM57508 NetXtreme-E "
                "10Gb/25Gb/40Gb/50Gb/100Gb/200Gb Ethernet found at mem 1fff, node addr 00:00",
            ),
        ),
        (
            "ice: recovery mode, then a new start of the driver",
            (
                "ice 0000:4b:00.0: Firmware recovery mode detected. Limiting functionality.",
                "ice 0000:4b:00.0: The DDP package was successfully loaded: ICE OS Default "
                "Package version 1.3.36.0",
            ),
        ),
        (
            "boots of workstations and servers, Linux 5.4 to 6.8: what only sounds bad",
            (
                'PCI: Using host bridge windows from ACPI; if necessary, use "pci=nocrs" and '
                "report a bug",
                "pci 0000:00:1c.0: BAR 13: failed to assign [io  size 0x1000]",
                "pci 0000:00:1c.0: bridge window [io  size 0x1000]: failed to assign",
                "thermal thermal_zone1: failed to read out thermal zone (-61)",
                "ACPI: [Firmware Bug]: BIOS _OSI(Linux) query ignored",
                "MMIO Stale Data CPU bug present and SMT on, data leak possible. See "
                "https://www.kernel.org/doc/html/latest/admin-guide/hw-vuln/x.html",
                "AMD-Vi: AMD IOMMUv2 functionality not available on this system - This is not a "
                "bug.",
                "check: Scanning for low memory corruption every 60 seconds",
                "EXT4-fs (nvme0n1p2): re-mounted. Opts: errors=remount-ro",
                "Disabling lock debugging due to kernel taint",
                "md127: detected capacity change from 0 to 1953260544",
                "x86/fpu: x87 FPU will use FXSAVE",
                "blacklist: Problem blacklisting hash (-13)",
                "nvidia: module verification failed: signature and/or required key missing - "
                "tainting kernel",
            ),
        ),
        (
            "mlx5: a boot of DGX and HGX nodes",
            (
                _LINK + "firmware version: 28.43.2026",
                _LINK + "504.112 Gb/s available PCIe bandwidth (32.0 GT/s PCIe x16 link)",
                _LINK + "Port module event: module 0, Cable unplugged",
                _LINK + "mlx5_pcie_event:301:(pid 9): PCIe slot advertised sufficient power (75W).",
                _LINK + "MLX5E: StrdRq(1) RqSz(8) StrdSz(2048) RxCqeCmprss(0 enhanced)",
                "mlx5_core 0000:18:00.0 ib0: Link up",
                "mlx5_core 0000:18:00.0 mlx5_0: Port: 1 Link ACTIVE",
                "infiniband mlx5_0: Couldn't open port 1",
            ),
        ),
        ("libata at boot", "ata1: SATA link up 6.0 Gbps (SStatus 133 SControl 300)"),
        ("libata: a port without a disk", "ata2: SATA link down (SStatus 0 SControl 300)"),
        (
            "SCSI: a virtual medium of a BMC",
            (
                "sd 6:0:0:0: [sdb] Attached SCSI removable disk",
                "sd 6:0:0:0: [sdb] Media removed, stopped polling",
            ),
        ),
        (
            "Linux: an empty floppy drive and a CD without a medium",
            (
                "I/O error, dev fd0, sector 0 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2",
                "blk_update_request: I/O error, dev sr0, sector 0 op 0x0:(READ) flags 0x0",
                "Buffer I/O error on dev sr0, logical block 0, async page read",
                "I/O error, dev loop3, sector 0 op 0x0:(READ) flags 0x80700 phys_seg 1",
            ),
        ),
        # --- clients of file systems
        (
            "Lustre: a reply that was late, and a server that came back",
            (
                "Lustre: 2449:0:(client.c:2141:ptlrpc_expire_one_request()) @@@ Request sent has "
                "timed out for slow reply: [sent 1764000000/real 1764000000]",
                "Lustre: fs1-OST0001-osc-ffff9d6153c91000: Connection to fs1-OST0001 (at "
                "10.0.0.1@tcp) was lost; in progress operations using this service will wait for "
                "recovery to complete",
                "Lustre: fs1-OST0001-osc-ffff9d6153c91000: Connection restored to 10.0.0.1@tcp (at "
                "10.0.0.1@tcp)",
                "Lustre: Skipped 24 previous similar messages",
            ),
        ),
        (
            "Lustre at boot",
            (
                "LNet: HW NUMA nodes: 2, HW CPU cores: 240, npartitions: 2",
                "LNet: Added LNI 10.0.1.17@o2ib [8/256/0/180]",
                "Lustre: Lustre: Build Version: 2.15.5",
                "Lustre: Mounted fs1-client",
            ),
        ),
        (
            "CephFS: a metadata server that came back",
            ("ceph: mds0 hung", "ceph: mds0 came back"),
        ),
        (
            "CephFS: another monitor took over, disks that come and go",
            (
                "libceph: mon0 (1)10.0.0.8:6789 session lost, hunting for new mon",
                "libceph: mon1 (1)10.0.0.9:6789 session established",
                "libceph: osd12 down",
                "libceph: osd12 up",
                "libceph: osd3 (1)10.0.0.9:6801 socket closed (con state OPEN)",
            ),
        ),
        (
            "CIFS at mount",
            (
                "CIFS: Attempting to mount \\\\10.0.0.5\\share",
                "CIFS: No dialect specified on mount. Default has changed to a more secure "
                "dialect, SMB2.1 or later",
            ),
        ),
        (
            "BeeGFS at mount",
            "beegfs: mount(1516568): Built without NVFS RDMA support.",
        ),
        (
            "OpenAFS: a server that came back",
            (
                "afs: Lost contact with file server 10.0.0.7 in cell example.org (code -1)",
                "afs: file server 10.0.0.7 in cell example.org is back up (code 0)",
            ),
        ),
        ("NFS at mount", "NFS: Registering the id_resolver key type"),
        # --- NICs
        (
            "mlx5: a command that was late",
            _LINK + "wait_func_handle_exec_timeout:1108:(pid 1): cmd[0]: CREATE_CQ(0x400) "
            "recovered after timeout",
        ),
        (
            "mlx5: what a program asked for and did not get",
            _LINK + "mlx5_cmd_out_err:800:(pid 1): CREATE_QP(0x500) op_mod(0x0) failed, status "
            "limits exceeded(0x8), syndrome (0x1234), err(-12)",
        ),
        (
            "mlx5: a completion with an error, as when a peer is gone",
            (
                "infiniband mlx5_0: dump_cqe:272:(pid 4242): dump error cqe",
                "00000000: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
                "mlx5_0: dump_cqe:272:(pid 4242): WC error: 12, Message: transport retry counter "
                "exceeded",
            ),
        ),
        (
            "mlx5: firmware that says it needs nothing",
            _LINK + "print_health_info:431:(pid 0): Health issue observed, firmware is OK, "
            "severity(7) DEBUG:",
        ),
        (
            "bnxt at boot, and a firmware that is updated",
            (
                "bnxt_en 0000:3d:00.0 eth0: Broadcom BCM57608 NetXtreme-E 400Gb Ethernet found at "
                "mem 1, node addr 00:00:00:00:00:00",
                "bnxt_en 0000:3d:00.0 enp61s0f0np0: NIC Link is Up, 400000 Mbps (PAM4 112Gbps) "
                "full duplex, Flow control: none",
                "bnxt_en 0000:3d:00.0 enp61s0f0np0: EEE is not active",
                "bnxt_en 0000:3d:00.0 enp61s0f0np0: FEC autoneg off encoding: Reed Solomon "
                "RS544_2XN",
            ),
        ),
        (
            "ice and irdma at boot",
            (
                "ice 0000:4b:00.0: The DDP package was successfully loaded: ICE OS Default Package "
                "version 1.3.36.0",
                "ice 0000:4b:00.0 ens1f0: NIC Link is up 100 Gbps Full Duplex, Requested FEC: "
                "RS-FEC, Negotiated FEC: RS-FEC, Autoneg Advertised: On, Autoneg Negotiated: "
                "True, Flow Control: None",
                "irdma 0000:4b:00.0 rocep75s0: Loaded",
            ),
        ),
        (
            "ena and efa at boot, and a reset that ended well",
            (
                "ena 0000:00:05.0: ENA device version: 0.10",
                "ena 0000:00:05.0 ens5: Keep alive watchdog timeout.",
                "ena 0000:00:05.0: Device reset completed successfully, Driver info: Elastic "
                "Network Adapter (ENA) v2.13.0g",
                "efa 0000:50:00.0: Setup irq:123 name:efa-mgmnt@pci:0000:50:00.0",
                "infiniband rdmap80s0: ibv_create_qp failed",
            ),
        ),
        # --- the NVIDIA driver
        (
            "driver 570: links that were taken down and are trained again",
            f"NVRM: Xid (PCI:{GPU}): 149, NETIR_LINK_EVT Fatal XC0 i0 Link 00 (0x026001c6 "
            "0x00000000 0x00000000 0x00000000 0x00000000 0x00000000)",
        ),
        (
            "driver 570: NVLink events that need nothing",
            (
                f"NVRM: Xid (PCI:{GPU}): 144, SAW_MVB Nonfatal XC0 i0 Link 0 (0x00000001 "
                "0x00000008 0x00000000 0x00000000 0x00000000 0x00000000)",
                f"NVRM: Xid (PCI:{GPU}): 145, RLW_RXPIPE Nonfatal XC0 i0 Link 13 (0x0409a0c2 "
                "0x00000008 0x00000001 0x00000000 0x00100000 0x00000004)",
            ),
        ),
        (
            "open driver: assertions for its developers",
            (
                "NVRM: GPU3 nvAssertFailedNoLog: Assertion failed: pGpu != NULL @ gpu.c:12",
                "NVRM: nvCheckOkFailedNoLog: Check failed: Generic Error [NV_ERR_GENERIC]",
                "NVRM: knvlinkUpdatePostRxDetLinkMask_IMPL: Failed to update Rx Detect Link mask!",
            ),
        ),
        (
            "driver at its start",
            (
                "nvidia: loading out-of-tree module taints kernel.",
                "nvidia-nvlink: Nvlink Core is being initialized, major device number 510",
                "NVRM: GPU Board Serial Number: 1653025000003",
                "nvidia-uvm: Loaded the UVM driver, major device number 508.",
                "nvidia-modeset: Loading NVIDIA Kernel Mode Setting Driver for UNIX platforms",
                "[drm] [nvidia-drm] [GPU ID 0x00001b00] Loading driver",
            ),
        ),
        (
            "NVSwitch: the registers below an SXid that needs nothing now",
            (
                "nvidia-nvswitch2: SXid (PCI:0000:c1:00.0): 10005, OSFP temperature is normal",
                "nvidia-nvswitch2: SXid (PCI:0000:c1:00.0): Severity 0 Engine instance 45 "
                "Sub-engine instance 00",
            ),
        ),
    )
)
