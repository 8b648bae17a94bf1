"""Sick, in other words: lines of the kernel's log."""

from __future__ import annotations

from checks import Case, both, wrote
from healthy import logged, port
from sick_rows import (
    FAIL,
    GPU,
    WARN,
    lines,
    rows,
    xid,
)

from tests.hardware.tree import GPU_BDFS

LOG = [
    *lines(
        "xid",
        (
            FAIL,
            "Xid 79",
            "driver 535 and later, osinit.c",
            xid(79, "pid='<unknown>', name=<unknown>, GPU has fallen off the bus."),
        ),
        (
            FAIL,
            "Xid 79",
            "driver 535, osinit.c, without an Xid",
            f"NVRM: GPU {GPU_BDFS[3]}: GPU has fallen off the bus.",
        ),
        (
            FAIL,
            "Xid 119",
            "driver 525, GSP firmware",
            xid(
                119,
                "pid=1404, name=nvidia-smi, Timeout "
                "after 6s of waiting for RPC response from GPU3 GSP! Expected function 76",
            ),
        ),
        (
            FAIL,
            "Xid 48",
            "driver 450, pid in quotes",
            xid(
                48,
                "pid='<unknown>', name=<unknown>, An "
                "uncorrectable double bit error (DBE) has been detected on GPU",
            ),
        ),
        (
            FAIL,
            "Xid 95",
            "driver 550, with a MIG instance",
            f"NVRM: Xid (PCI:{GPU} GPU-I:05): 95, "
            "pid=7194, name=a, Uncontained: LTC TAG (0x2,0x0). RST: Yes, D-RST: No",
        ),
        (
            FAIL,
            "Xid 149",
            "driver 570, NVLink 5",
            xid(149, "NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x004505c6 0x00000000 0x0 0x0)"),
        ),
        (
            FAIL,
            "recovery action",
            "driver 570, gpu.c",
            xid(154, "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)"),
        ),
        (
            FAIL,
            "RmInitAdapter",
            "driver 535, osinit.c: no Xid at all",
            f"NVRM: GPU {GPU_BDFS[3]}: RmInitAdapter failed! (0x62:0x0:2487)",
        ),
        (
            FAIL,
            "RmInitAdapter",
            "driver 580, kernel-open nv.c",
            f"NVRM: GPU {GPU_BDFS[3]}: rm_init_adapter failed, device minor number 3",
        ),
        (
            FAIL,
            "unified memory",
            "driver 590, nv_gpu_ops.c",
            "NVRM: nvGpuOpsReportFatalError: uvm "
            "encountered global fatal error 0x60, requiring os reboot to recover.",
        ),
        (
            FAIL,
            "SOE HALTED",
            "driver 595, soe_ls10.c: an SXid without a severity",
            "nvidia-nvswitch1: SXid (PCI:0004:00:00.0): 26006, SOE HALTED",
        ),
        (
            FAIL,
            "SXid 20034",
            "driver 535, intr_lr10.c",
            "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
        ),
        (
            FAIL,
            "SXid 10008",
            "driver 550, ls10.c",
            "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): "
            "10008, Fatal, Firmware initialization failure (0x1/0x2, 0x3, 0x4, 0x5/0x6, 0x7, 0x8",
        ),
        (
            WARN,
            "SXid 28003",
            "driver 550, heartbeat_ls10.c",
            "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 28003, OSFP over temperature on module 3",
        ),
        (
            WARN,
            "Xid 31",
            "written by driver 580.159.04 on an H100 as a program wrote out of bounds",
            xid(
                31,
                "pid=1537, name=xid, channel 0x0000000a, intr 00000000. MMU Fault: ENGINE "
                "GRAPHICS GPC1 GPCCLIENT_T1_8 faulted @ 0x7f00_00001000. Fault is of type "
                "FAULT_PDE ACCESS_TYPE_VIRT_WRITE",
            ),
        ),
        (
            WARN,
            "Xid 13",
            "driver 580.159.04, H100: a misaligned address; this line names no process",
            xid(13, "Graphics SM Warp Exception on (GPC 1, TPC 4, SM 0): Misaligned Address"),
        ),
        (
            WARN,
            "Xid 13",
            "driver 580.159.04, H100: the third line of the same event",
            xid(13, "pid=1543, name=xid, Graphics Exception: channel 0x0000000a, Class 0000cbc0"),
        ),
        (
            WARN,
            "Xid 43",
            "driver 580.159.04, H100: an assertion of a torch kernel, an index out of bounds",
            xid(43, "pid=1549, name=python3, channel 0x0000000a"),
        ),
        (WARN, "SEC2", "driver 580, nverror.h: 169", xid(169, "pid=1, name=a, SEC2 halted")),
        (WARN, "C2C", "driver 580, nverror.h: 173", xid(173, "C2C fatal link failure")),
        (WARN, "memory subsystem", "driver 590, nverror.h", xid(175, "pid=1, name=a, mem")),
        (WARN, "correctable PCIe", "driver 595, nverror.h", xid(176, "PCIe correctable")),
        (WARN, "not in the catalog", "a driver that is not there yet", xid(185, "pid=1, name=a")),
        (
            WARN,
            "CTX SWITCH TIMEOUT",
            "driver 575: 45 that names its cause",
            xid(
                45,
                "pid=4242, "
                "name=python3, Ch 00000008, errorString CTX SWITCH TIMEOUT, Info 0x1c0f2a3",
            ),
        ),
        (WARN, "Xid 94", "driver 550", xid(94, "pid=7194, name=a, Contained: SM (0x1). RST: No")),
    ),
    *lines(
        "nvme",
        (
            WARN,
            "went down",
            "Linux 4.12",
            "nvme nvme0: controller is down; will reset: CSTS=0xffffffff, PCI_STATUS=0xffff",
        ),
        (
            WARN,
            "went down",
            "Linux 5.15, PCI can't be read",
            "nvme nvme0: controller is down; will reset: CSTS=0x3, PCI_STATUS read failed (134)",
        ),
        (WARN, "went down", "Linux 4.4", "nvme nvme0: Failed status: 0x3, reset controller"),
        (
            FAIL,
            "did not come back",
            "Linux 4.14",
            "nvme nvme0: Removing after probe failure status: -19",
        ),
        (
            FAIL,
            "did not come back",
            "Linux 6.1",
            "nvme nvme0: Disabling device after reset failure: -19",
        ),
        (
            FAIL,
            "did not come back",
            "Linux 5.10",
            "nvme nvme0: Device not ready; aborting reset, CSTS=0x1",
        ),
        (WARN, "in time", "Linux 4.18", "nvme nvme0: I/O 566 QID 7 timeout, aborting"),
        (WARN, "in time", "Linux 5.18", "nvme nvme0: I/O 566 (I/O Cmd) QID 7 timeout, aborting"),
        (
            WARN,
            "in time",
            "Linux 6.4",
            "nvme nvme0: I/O tag 12 (100c) opcode 0x2 (Read) QID 3 timeout, reset controller",
        ),
        (WARN, "in time", "Linux 5.4", "nvme nvme0: I/O 23 QID 0 timeout, disable controller"),
        (
            WARN,
            "read or written",
            "Linux 5.16",
            "critical medium error, dev nvme0n1, sector 0 op "
            "0x0:(READ) flags 0x0 phys_seg 1 prio class 0",
        ),
        (
            WARN,
            "read or written",
            "Linux 5.10",
            "blk_update_request: critical medium error, dev "
            "nvme0n1, sector 7814037 op 0x0:(READ) flags 0x80700",
        ),
        (
            WARN,
            "read or written",
            "Linux 4.14",
            "print_req_error: I/O error, dev nvme0n1, sector 0",
        ),
        (
            WARN,
            "read or written",
            "Linux 6.12",
            "I/O error, dev nvme0c0n1, sector 8 op 0x1:(WRITE)",
        ),
        (
            WARN,
            "read or written",
            "Linux 4.x, buffer.c",
            "Buffer I/O error on dev nvme0n1p1, logical block 0, async page read",
        ),
        (
            WARN,
            "read or written",
            "Linux 3.10",
            "Buffer I/O error on device nvme0n1, logical block 5",
        ),
        (
            WARN,
            "read or written",
            "Linux 5.17",
            "nvme0n1: Read(0x2) @ LBA 2048, 8 blocks, "
            "Unrecovered Read Error (sct 0x2 / sc 0x81) DNR",
        ),
    ),
    *lines(
        "mem.poison",
        (
            FAIL,
            "lost",
            "Linux 6.8",
            "Memory failure: 0x1c0f2a3: recovery action for dirty LRU page: Recovered",
        ),
        (FAIL, "lost", "Linux 3.10", "MCE 0x1c0f2a3: dirty LRU page recovery: Recovered"),
        (
            FAIL,
            "lost",
            "Linux 5.15 on Intel",
            "mce: Uncorrected hardware memory error in user-access at 1c0f2a3000",
        ),
        (
            FAIL,
            "uncorrected memory error",
            "Linux, Intel EDAC",
            "EDAC MC0: 1 UE memory read error "
            "on CPU_SrcID#0_MC#0_Chan#1_DIMM#0 (channel:1 slot:0 page:0x1c0f2a3 offset:0x0 "
            "grain:32)",
        ),
        (
            FAIL,
            "uncorrected memory error",
            "Linux, AMD EDAC",
            "EDAC MC1: 1 UE Cannot decode "
            "normalized address on mc#1csrow#1channel#0 (csrow:1 channel:0 page:0x0 offset:0x0 "
            "grain:64)",
        ),
        (
            FAIL,
            "not corrected",
            "Linux, Intel",
            "mce: [Hardware Error]: CPU 2: Machine Check Exception: 5 Bank 1: be00000000800400",
        ),
        (
            FAIL,
            "not corrected",
            "Linux 4.18, Intel",
            "[Hardware Error]: CPU 34: Machine Check Exception: f Bank 7: ac00000000010090",
        ),
        (
            FAIL,
            "not corrected",
            "Linux, AMD mce_amd",
            "[Hardware Error]: Uncorrected, software restartable error.",
        ),
        (
            FAIL,
            "not corrected",
            "Linux, AMD mce_amd, fatal",
            "[Hardware Error]: System Fatal error.",
        ),
        (
            FAIL,
            "not corrected",
            "Linux, arm64",
            "SError Interrupt on CPU5, code 0x00000000be000011 -- SError",
        ),
        (
            WARN,
            "machine check",
            "Linux, AMD, deferred",
            "[Hardware Error]: Deferred error, no action required.",
        ),
        (
            WARN,
            "machine check",
            "Linux, corrected",
            "mce: [Hardware Error]: CPU 2: Machine Check: 0 Bank 7: 8c00004000010090",
        ),
        (
            FAIL,
            "firmware reported",
            "Linux 4.9, APEI without sections",
            "[Hardware Error]: event severity: fatal",
        ),
        (WARN, "out of use", "Linux, drivers/ras/cec.c", "RAS: Soft-offlining pfn: 0x1c0f2a3"),
    ),
    *rows(
        "mem.poison",
        (
            FAIL,
            "uncorrected memory error",
            "Linux, APEI of memory",
            logged(
                "{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 0",
                "{1}[Hardware Error]: event severity: recoverable",
                "{1}[Hardware Error]:  Error 0, type: recoverable",
                "{1}[Hardware Error]:   section_type: memory error",
            ),
        ),
        (
            WARN,
            "0000:17:00.0: the firmware reported an uncorrected PCIe error",
            "Linux, APEI of a PCIe device",
            logged(
                "{2}[Hardware Error]: event severity: recoverable",
                "{2}[Hardware Error]:  Error 0, type: recoverable",
                "{2}[Hardware Error]:   section_type: PCIe error",
                "{2}[Hardware Error]:   device_id: 0000:17:00.0",
            ),
        ),
        (
            FAIL,
            "uncorrected hardware error",
            "Linux, APEI of an arm64 processor",
            logged(
                "{3}[Hardware Error]: event severity: recoverable",
                "{3}[Hardware Error]:   section_type: ARM processor error",
            ),
        ),
        (
            FAIL,
            "mc0: 2 uncorrected errors",
            "EDAC's counter in /sys",
            both(
                wrote("sys/devices/system/edac/mc/mc0/ue_count", "2"),
                wrote("sys/devices/system/edac/mc/mc0/ce_count", "0"),
            ),
        ),
    ),
    *lines(
        "nic.kmsg",
        (
            FAIL,
            "mlx5_0: the NIC's firmware",
            "Linux 5.15",
            "mlx5_core 0000:18:00.0: "
            "poll_health:938:(pid 0): device's health compromised - reached miss count",
        ),
        (
            FAIL,
            "the NIC's firmware",
            "Linux 3.10",
            "mlx5_core 0000:18:00.0: device's health compromised",
        ),
        (
            FAIL,
            "the NIC's firmware",
            "Linux 5.4",
            "mlx5_core 0000:18:00.0: poll_health:694:(pid 0): Fatal error 1 detected",
        ),
        (
            FAIL,
            "the NIC's firmware",
            "Linux 4.15",
            "mlx5_core 0000:18:00.0: synd 0x8: unrecoverable hardware error",
        ),
        (
            FAIL,
            "the NIC's firmware",
            "Linux 6.1",
            "mlx5_core 0000:18:00.0: "
            "print_health_info:431:(pid 0): Health issue observed, unrecoverable hardware error, "
            "severity(3) ERROR:",
        ),
        (
            FAIL,
            "the NIC's firmware",
            "Linux 5.x",
            "mlx5_core 0000:18:00.0: "
            "mlx5_health_try_recover:332:(pid 12): health recovery flow aborted, PCI reads still "
            "not "
            "working",
        ),
        (
            FAIL,
            "got no answer",
            "Linux 4.18",
            "mlx5_core 0000:18:00.0: wait_func:1177:(pid 967): "
            "MODIFY_CQ(0x403) timeout. Will cause a leak of a command resource",
        ),
        (
            WARN,
            "a queue",
            "Linux 6.1, WARN in sch_generic.c",
            "NETDEV WATCHDOG: ens40np0 (mlx5_core): transmit queue 0 timed out",
        ),
        (
            WARN,
            "a queue",
            "Linux 6.8",
            "mlx5_core 0000:41:00.0 ens40np0: NETDEV WATCHDOG: CPU: 3: "
            "transmit queue 0 timed out 5344 ms",
        ),
        (
            WARN,
            "a queue",
            "Broadcom, Linux 6.8",
            "bnxt_en 0000:3d:00.0 enp61s0f0np0: NETDEV "
            "WATCHDOG: CPU: 12: transmit queue 5 timed out 5120 ms",
        ),
        (
            WARN,
            "a queue",
            "mlx5, en_main.c",
            "mlx5_core 0000:41:00.0 ens40np0: TX timeout detected",
        ),
        (
            WARN,
            "too hot",
            "Linux 5.15, events.c",
            "mlx5_core 0000:18:00.0: temp_warn:243:(pid 0): "
            "High temperature on sensors with bit set 0 1",
        ),
        (
            WARN,
            "too hot",
            "Linux 5.15, transceiver",
            "mlx5_core 0000:18:00.0: Port module "
            "event[error]: module 0, Cable error, High Temperature",
        ),
        (
            WARN,
            "PCIe link",
            "Linux 5.15, aer.c",
            "mlx5_core 0000:18:00.0: AER: PCIe Bus Error: "
            "severity=Uncorrected (Non-Fatal), type=Transaction Layer, (Requester ID)",
        ),
        (
            WARN,
            "too little power",
            "later than the boot",
            "mlx5_core 0000:18:00.0: "
            "mlx5_pcie_event:301:(pid 2): Detected insufficient power on the PCIe slot (27W).",
        ),
    ),
    *lines(
        "kernel",
        (FAIL, "locked up", "Linux x86", "NMI watchdog: Watchdog detected hard LOCKUP on cpu 31"),
        (
            FAIL,
            "locked up",
            "Linux 6.5, buddy on arm64",
            "watchdog: Watchdog detected hard LOCKUP on cpu 5",
        ),
        (FAIL, "locked up", "powerpc", "watchdog: CPU 4 detected hard LOCKUP on other CPUs 3"),
        (
            FAIL,
            "stuck in the kernel",
            "Linux 3.10",
            "BUG: soft lockup - CPU#1 stuck for 22s! [x:1]",
        ),
        (
            FAIL,
            "stuck in the kernel",
            "Linux 4.4",
            "NMI watchdog: BUG: soft lockup - CPU#7 stuck for 23s! [kworker/7:1:88]",
        ),
        (WARN, "oops", "Linux 6.9 x86", "Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI"),
        (
            WARN,
            "oops",
            "arm64, external abort",
            "Internal error: synchronous external abort: 96000210 [#1] PREEMPT SMP",
        ),
        (
            WARN,
            "oops",
            "arm64, undefined",
            "Internal error: Oops - Undefined instruction: 0000000002000000 [#1] SMP",
        ),
        (WARN, "oops", "powerpc", "Oops: Kernel access of bad area, sig: 11 [#1]"),
        (
            WARN,
            "kernel bug",
            "arm64",
            "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000010",
        ),
        (
            WARN,
            "kernel bug",
            "Linux 4.x x86",
            "BUG: unable to handle kernel paging request at ffffc900",
        ),
        (
            WARN,
            "kernel bug",
            "workqueues",
            "BUG: workqueue lockup - pool cpus=3 node=0 flags=0x0 nice=0 stuck for 43s!",
        ),
        (WARN, "touched memory", "Linux 4.x", "general protection fault: 0000 [#1] SMP PTI"),
        (WARN, "did not answer", "Linux 4.18", "INFO: rcu_sched self-detected stall on CPU"),
        (
            WARN,
            "did not answer",
            "Linux 5.x, expedited",
            "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 3-... }",
        ),
        (
            WARN,
            "did not answer",
            "Linux 6.x, tasks",
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        ),
        (
            WARN,
            "did not answer",
            "its thread starves",
            "rcu: rcu_sched kthread starved for 60000 "
            "jiffies! g1 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x0 ->cpu=3",
        ),
        (
            WARN,
            "stuck in the kernel",
            "a blank in the name (KVM)",
            "INFO: task CPU 0/KVM:7450 blocked for more than 120 seconds.",
        ),
        (
            WARN,
            "stuck in the kernel",
            "Linux 6.13",
            "INFO: task python3:4242 blocked in I/O wait for more than 122 seconds.",
        ),
        (
            WARN,
            "want of memory",
            "Linux 5.x",
            "Out of memory: Killed process 4242 (python3) total-vm:8kB, anon-rss:4kB",
        ),
        (
            WARN,
            "want of memory",
            "a cgroup's",
            "Memory cgroup out of memory: Killed process 4242 (python3) total-vm:8kB",
        ),
        (
            WARN,
            "want of memory",
            "Linux 4.x, by score",
            "Out of memory: Kill process 4242 (python3) score 987 or sacrifice child",
        ),
    ),
    *(
        Case(
            check="ib.flap",
            name=source,
            status=WARN,
            seen=f"{device}: lost its link {times} times",
            change=both(*(logged(x, ago_s=600.0 + 60 * n) for n in range(times) for x in texts)),
        )
        for source, device, times, texts in (
            ("mlx5 of Linux 5.15, IPoIB", "mlx5_0", 3, ["mlx5_core 0000:18:00.0 ib0: Link down"]),
            (
                "mlx5 of DOCA OFED",
                "mlx5_0",
                5,
                ["mlx5_core 0000:18:00.0 mlx5_0: Port: 1 Link DOWN"],
            ),
            ("mlx5 in capitals", "mlx5_3", 4, ["mlx5_core 0000:5d:00.0: Port: 1 Link DOWN"]),
            (
                "RoCE prints both forms: counted once",
                "mlx5_8",
                3,
                [
                    "mlx5_core 0000:41:00.0 ens40np0: Link down",
                    "mlx5_core 0000:41:00.0 mlx5_8: Port: 1 Link DOWN",
                ],
            ),
        )
    ),
    *rows(
        "ib.flap",
        (
            WARN,
            "bnxt_re0: lost its link 3 times",
            "Broadcom",
            both(
                port(
                    "bnxt_re0",
                    "0000:3d:00.0",
                    "enp61s0f0np0",
                    board="",
                    pci=("0x14e4", "0x1750"),
                    counters=(),
                    address="10.5.0.17",
                ),
                *(
                    logged("bnxt_en 0000:3d:00.0 enp61s0f0np0: NIC Link is Down", ago_s=600.0 + n)
                    for n in range(3)
                ),
            ),
        ),
        (
            WARN,
            "irdma0: lost its link 3 times",
            "Intel",
            both(
                port(
                    "irdma0",
                    "0000:4b:00.0",
                    "ens1f0",
                    board="",
                    pci=("0x8086", "0x1592"),
                    counters=(),
                    address="10.5.0.17",
                ),
                *(
                    logged("ice 0000:4b:00.0 ens1f0: NIC Link is Down", ago_s=600.0 + n)
                    for n in range(3)
                ),
            ),
        ),
    ),
    *rows(
        "nfs.passive",
        (
            WARN,
            "not responding",
            "Linux, net/sunrpc, a hard mount",
            logged("nfs: server 10.0.0.5 not responding, still trying", ago_s=20),
        ),
        (
            FAIL,
            "not responding",
            "lockd",
            logged("lockd: server 10.0.0.5 not responding, still trying", ago_s=90),
        ),
        (
            WARN,
            "timed out",
            "a soft mount",
            logged("nfs: server 10.0.0.5 not responding, timed out", ago_s=20),
        ),
        (
            WARN,
            "Lock reclaim failed",
            "Linux 3.x to 6.x",
            logged("NFS: nfs4_reclaim_open_state: Lock reclaim failed!", ago_s=60),
        ),
    ),
]
