"""Sick, in other words: kernel lines of PCIe slots and ports, processors, memory and the kernel."""

from __future__ import annotations

from sick_rows import FAIL, WARN, lines

BUSES = [
    *lines(
        "pcie.kmsg",
        (
            WARN,
            "0000:17:01.0: a card or its link was lost",
            "Linux 5.0, pciehp_ctrl.c",
            "pcieport 0000:17:01.0: pciehp: Slot(3): Card not present",
        ),
        (
            WARN,
            "0000:17:01.0: a card or its link was lost",
            "Linux 5.0, pciehp_ctrl.c, a slot with a dash",
            "pcieport 0000:17:01.0: pciehp: Slot(3-1): Link Down",
        ),
        (
            WARN,
            "0000:17:01.0: a card or its link was lost",
            "Linux 4.9 to 4.20, by service",
            "pciehp 0000:17:01.0:pcie204: Slot(3): Link Down",
        ),
        (
            WARN,
            "0000:00:1c.0: a card or its link was lost",
            "Linux 3.x to 4.8",
            "pciehp 0000:00:1c.0:pcie04: Card not present on Slot(3)",
        ),
        (
            WARN,
            "power fault",
            "Linux 4.9, pciehp_ctrl.c",
            "pcieport 0000:17:01.0: pciehp: Slot(3): Power fault",
        ),
        (
            WARN,
            "fatal error",
            "Linux 6.11, aer.c, with `message`",
            "pcieport 0000:17:01.0: AER: Uncorrectable (Fatal) error message received from "
            "0000:1b:00.0",
        ),
        (
            WARN,
            "fatal error",
            "Linux 5.x, aer.c",
            "pcieport 0000:17:01.0: AER: Uncorrected (Fatal) error received: 0000:17:01.0",
        ),
        (
            WARN,
            "fatal error",
            "Linux 4.x, by requester's id",
            "pcieport 0000:17:01.0: AER: Multiple Uncorrected (Fatal) error received: id=1b00",
        ),
        (
            WARN,
            "0000:1b:00.0: an uncorrected error on its PCIe link",
            "Linux 5.x, of a GPU",
            "nvidia 0000:1b:00.0: PCIe Bus Error: severity=Uncorrected (Fatal), "
            "type=Transaction Layer, (Requester ID)",
        ),
        (
            WARN,
            "0000:5e:00.0: an uncorrected error on its PCIe link",
            "Linux 4.x, of a disk, by id",
            "nvme 0000:5e:00.0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), "
            "type=Transaction Layer, id=5e00(Requester ID)",
        ),
        (
            WARN,
            "0000:17:01.0: an uncorrected error on its PCIe link",
            "Linux 6.11, of a port",
            "pcieport 0000:17:01.0: PCIe Bus Error: severity=Uncorrectable (Non-Fatal), "
            "type=Data Link Layer, (Receiver ID)",
        ),
        (
            WARN,
            "could not be recovered",
            "Linux 5.x, err.c",
            "pcieport 0000:17:01.0: AER: device recovery failed",
        ),
        (
            WARN,
            "could not be recovered",
            "Linux 4.x, in capitals",
            "pcieport 0000:17:01.0: AER: Device recovery failed",
        ),
        (
            WARN,
            "was taken off the bus",
            "Linux 4.16, dpc.c",
            "pcieport 0000:17:01.0: DPC: containment event, status:0x1f01 source:0x0000",
        ),
        (
            WARN,
            "was taken off the bus",
            "Linux 6.16, dpc.c, in words",
            "pcieport 0000:17:01.0: DPC: containment event, status:0x1f05, ERR_FATAL received "
            "from 0000:18:00.0",
        ),
        (
            WARN,
            "was taken off the bus",
            "Linux 4.6, by service",
            "dpc 0000:17:01.0:pcie210: DPC containment event, status:0x1f01 source:0x0000",
        ),
        (
            WARN,
            "0000:5e:00.0: does not answer on the PCIe bus",
            "Linux 6.0, pci.c",
            "nvme 0000:5e:00.0: Unable to change power state from D3cold to D0, device "
            "inaccessible",
        ),
        (
            WARN,
            "0000:1b:00.0: does not answer on the PCIe bus",
            "Linux 5.7 to 5.19",
            "nvidia 0000:1b:00.0: can't change power state from D3cold to D0 (config space "
            "inaccessible)",
        ),
        (
            WARN,
            "1b:00.0: reached for memory",
            "Linux 5.15, intel/dmar.c",
            "DMAR: [DMA Read NO_PASID] Request device [1b:00.0] fault addr 0x7f21c0de0000 [fault "
            "reason 0x06] PTE Read access is not set",
        ),
        (
            WARN,
            "18:00.0: reached for memory",
            "Linux 4.x, dmar.c",
            "DMAR: [DMA Write] Request device [18:00.0] fault addr 7f21c0de0000 [fault reason 05] "
            "PTE Write access is not set",
        ),
        (
            WARN,
            "0000:41:00.0: reached for memory",
            "Linux, AMD",
            "AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:41:00.0 domain=0x0000 "
            "address=0x7f21c0de0000 flags=0x0050]",
        ),
        (
            WARN,
            "0000:1b:00.0: reached for memory",
            "Linux, AMD, a device that has a driver",
            "nvidia 0000:1b:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0029 "
            "address=0x7f21c0de0000 flags=0x0000]",
        ),
        (
            WARN,
            "0000:1b:00.0: does not answer on the PCIe bus",
            "Linux 4.18, pci_dev_wait",
            "vfio-pci 0000:1b:00.0: not ready 65535ms after FLR; giving up",
        ),
    ),
    *lines(
        "kernel",
        (
            FAIL,
            "locked up",
            "Linux 6.10, with the CPU that saw it",
            "watchdog: CPU3: Watchdog detected hard LOCKUP on cpu 3",
        ),
        (
            WARN,
            "oops",
            "Linux before 6.9 x86, a division",
            "divide error: 0000 [#1] PREEMPT SMP PTI",
        ),
        (WARN, "oops", "Linux before 6.9 x86, BUG()", "invalid opcode: 0000 [#1] SMP NOPTI"),
        (WARN, "oops", "Linux before 6.9 x86, a stack", "stack segment: 0000 [#1] SMP"),
        (
            WARN,
            "oops",
            "Linux 6.9 x86, a division",
            "Oops: divide error: 0000 [#1] PREEMPT SMP NOPTI",
        ),
        (
            WARN,
            "oops",
            "Linux 6.9 x86, an address",
            "Oops: general protection fault, probably for non-canonical address "
            "0xdead000000000122: 0000 [#1] PREEMPT SMP NOPTI",
        ),
        (
            WARN,
            "oops",
            "Linux 6.6 arm64",
            "Internal error: Oops: 0000000096000004 [#1] SMP",
        ),
        (
            WARN,
            "did not answer",
            "Linux 5.10, tree_stall.h, a timer",
            "rcu: rcu_preempt kthread timer wakeup didn't happen for 5251 jiffies! g1 f0x0 "
            "RCU_GP_WAIT_FQS(5) ->state=0x402",
        ),
        (
            WARN,
            "did not answer",
            "Linux 5.11, kernel/smp.c",
            "smp: csd: Detected non-responsive CSD lock (#1) on CPU#3, waiting 5000000042 ns for "
            "CPU#07 do_flush_tlb_all+0x0/0x30(0x0).",
        ),
        (
            WARN,
            "did not answer",
            "Linux 3.10, by state",
            "INFO: rcu_sched_state detected stalls on CPUs/tasks: { 1} (detected by 2, t=65002 "
            "jiffies)",
        ),
        (
            WARN,
            "want of memory",
            "vm.oom_kill_allocating_task",
            "Out of memory (oom_kill_allocating_task): Killed process 4242 (python3) "
            "total-vm:8kB, anon-rss:4kB",
        ),
        (
            WARN,
            "want of memory",
            "Linux 5.1, with the user",
            "Memory cgroup out of memory: Killed process 4242 (pt_main_thread) total-vm:8kB, "
            "anon-rss:4kB, file-rss:0kB, shmem-rss:0kB, UID:1000 pgtables:4kB oom_score_adj:0",
        ),
        (
            WARN,
            "slowed itself down for heat",
            "Linux 4.x, Intel therm_throt.c",
            "mce: CPU3: Core temperature above threshold, cpu clock throttled (total events = 12)",
        ),
        (
            WARN,
            "CPU12: slowed itself down for heat",
            "Linux 2.6 to 3.x",
            "CPU12: Package temperature above threshold, cpu clock throttled (total events = 4)",
        ),
        (
            WARN,
            "CPU40: slowed itself down for heat",
            "Linux 5.6, where it lasts",
            "mce: CPU40: Package temperature is above threshold, cpu clock is throttled (total "
            "events = 44)",
        ),
        (
            WARN,
            "as hot as it may be",
            "Linux 4.x, thermal_core.c",
            "thermal thermal_zone0: acpitz: critical temperature reached, shutting down",
        ),
        (
            WARN,
            "as hot as it may be",
            "Linux 3.x, thermal_core.c",
            "thermal thermal_zone0: critical temperature reached(105 C),shutting down",
        ),
        (
            WARN,
            "a device asked for help",
            "Linux x86, nmi.c pci_serr_error",
            "NMI: PCI system error (SERR) for reason a1 on CPU 0.",
        ),
        (
            WARN,
            "a device asked for help",
            "Linux x86, nmi.c io_check_error",
            "NMI: IOCK error (debug interrupt?) for reason 71 on CPU 0.",
        ),
    ),
    *lines(
        "mem.poison",
        (
            FAIL,
            "lost",
            "Linux x86, arch/x86/mm/fault.c",
            "MCE: Killing python3:4242 due to hardware memory corruption fault at 7f21c0de0000",
        ),
        (
            FAIL,
            "lost",
            "Linux 6.x, a kill",
            "Memory failure: 0x1c0f2a3: Killing python3:4242 due to hardware memory corruption",
        ),
        (
            FAIL,
            "uncorrected memory error",
            "Linux, GHES EDAC 6.x",
            "EDAC MC0: 1 UE Multi-bit ECC on DIMM_P0_A0 (node:0 card:0 module:0 rank:0 bank:2 "
            "row:1 column:1 page:0x1c0f2a3 offset:0x0 grain:1 - APEI location: node:0 card:0)",
        ),
        (
            FAIL,
            "uncorrected memory error",
            "Linux, Intel i10nm EDAC",
            "EDAC MC5: 1 UE memory read error on CPU_SrcID#1_MC#1_Chan#0_DIMM#0 (channel:0 slot:0 "
            "page:0x1c0f2a3 offset:0x80 grain:32 -  err_code:0x0080:0x0090 SystemAddress:0x1c0)",
        ),
        (
            FAIL,
            "uncorrected memory error",
            "Linux, a module whose label is not known",
            "EDAC MC0: 1 UE Multi-bit ECC on unknown memory (page:0x1c0f2a3 offset:0x0 grain:1)",
        ),
        (
            FAIL,
            "uncorrected error in a cache",
            "Linux, EDAC of arm64's caches",
            "EDAC DEVICE0: UE: cpu_cache instance: cpu3 block: L2 count: 1 'L2 uncorrectable'",
        ),
        (
            FAIL,
            "not corrected",
            "Linux before 5.15 arm64, traps.c bad_mode",
            "Bad mode in Error handler detected on CPU1, code 0xbf000002 -- SError",
        ),
        (
            FAIL,
            "not corrected",
            "Linux 5.3 x86, mce/core.c mce_timed_out",
            "mce: CPUs not responding to MCE broadcast (may include false positives): 24-47,72-95",
        ),
        (
            FAIL,
            "not corrected",
            "Linux 5.x, AMD, contained",
            "[Hardware Error]: Uncorrected, software containable error.",
        ),
        (
            FAIL,
            "not corrected",
            "Linux 6.x, Intel, of a core",
            "mce: [Hardware Error]: CPU 71: Machine Check Exception: 7 Bank 0: bd80000000100134",
        ),
        (
            WARN,
            "machine check",
            "Linux 3.x to 6.8, Intel: so many that they are polled",
            "mce: CMCI storm detected: switching to poll mode",
        ),
        (
            WARN,
            "machine check",
            "Linux 6.9, Intel: by bank",
            "mce: CPU3 BANK7 CMCI storm detected",
        ),
        (
            FAIL,
            "firmware reported",
            "Linux 6.x, APEI, a number before it",
            "{42}[Hardware Error]: event severity: fatal",
        ),
    ),
]
