"""How kernels say that they, or what runs on them, is in trouble: one table for each kind of "
"event."""

from __future__ import annotations

from healthchecks.frame.check import Status
from healthchecks.sources.kernel_patterns import KernelLogPattern, Wording

_REBOOT = "drain the node and reboot it; keep the lines around it for the kernel's vendor"
KERNEL_PATTERNS = (
    KernelLogPattern(
        name="hard_lockup",
        wordings=(
            Wording(
                source="Linux 4.x to 6.12, kernel/watchdog.c, watchdog_perf.c (x86, arm64), "
                "powerpc; since 6.10 with the CPU that saw it",
                substring="hard LOCKUP",
                regex=r"(?:NMI )?watchdog: (?:(?:CPU\d+: )?Watchdog detected hard LOCKUP on cpu \d"
                r"|CPU \d+ (?:self-)?detected hard LOCKUP (?:@|on other CPUs))",
                example="NMI watchdog: Watchdog detected hard LOCKUP on cpu 31",
            ),
        ),
        status=Status.FAIL,
        what="a CPU was locked up with interrupts off",
        fix=f"{_REBOOT}; in a VM look at the host's load first",
    ),
    KernelLogPattern(
        name="soft_lockup",
        wordings=(
            Wording(
                source="Linux 4.16 to 6.12, kernel/watchdog.c; before with `NMI watchdog: ` or "
                "nothing",
                substring="soft lockup",
                regex=r"(?:(?:NMI )?watchdog: )?BUG: soft lockup - CPU#\d+ stuck for \d+s!",
                example="watchdog: BUG: soft lockup - CPU#15 stuck for 48s! [jfsz:2290]",
            ),
        ),
        status=Status.FAIL,
        what="a CPU was stuck in the kernel",
        fix=f"{_REBOOT}; in a VM look at the host's load first",
    ),
    KernelLogPattern(
        name="oops",
        wordings=(
            Wording(
                source="Linux, arch/x86/kernel/dumpstack.c __die_header; with the trap's name "
                "since 6.9",
                substring="Oops",
                regex=r"(?:Internal error: )?Oops: (?:[\da-f]{4,16}|[\w ]+(?:, probably for "
                r"non-canonical address 0x[\da-f]+)?: [\da-f]{4,16}) \[#\d+\] [A-Z]",
                example="Oops: 0000 [#1] PREEMPT SMP NOPTI",
            ),
            Wording(
                source="Linux before 6.9, arch/x86/kernel/traps.c do_trap",
                substring=" [#",
                regex=r"(?:divide error|invalid opcode|stack segment|segment not present|bounds"
                r"|invalid TSS|alignment check|double fault|int3|simd exception): [\da-f]{4} "
                r"\[#\d+\] [A-Z]",
                example="divide error: 0000 [#1] PREEMPT SMP PTI",
            ),
            Wording(
                source="Linux, arch/arm64/kernel/traps.c __die: aborts, undefined instructions, "
                "BRK",
                substring="Internal error: ",
                regex=r"Internal error: [A-Za-z][\w ,/()-]{2,60}: [\da-f]{1,16} \[#\d+\] [A-Z]",
                example="Internal error: synchronous external abort: 96000210 [#1] PREEMPT SMP",
            ),
            Wording(
                source="Linux, arch/powerpc/kernel/traps.c __die",
                substring="Oops: ",
                regex=r"Oops: [A-Z][\w ]+, sig: \d+ \[#\d+\]",
                example="Oops: Kernel access of bad area, sig: 11 [#1]",
            ),
        ),
        status=Status.WARN,
        what="kernel oops",
        fix=_REBOOT,
    ),
    KernelLogPattern(
        name="bug",
        wordings=(
            Wording(
                source="Linux 4.x to 6.12, lib/bug.c, mm, kernel/sched, kernel/locking, mm/kfence",
                substring="BUG",
                regex=r"kernel BUG at \S+:\d+!|BUG: (?:unable to handle |kernel NULL pointer "
                r"dereference"
                r"|scheduling while atomic: |sleeping function called from |Bad page "
                r"(?:state|map|cache)"
                r" in process |Bad rss-counter state |using \S+ in preemptible |stack guard page "
                r"was hit"
                r"|non-zero pgtables_bytes|spinlock \S+ on CPU#|KASAN: [a-z-]+ in |KFENCE: [a-z "
                r"-]+ in "
                r"|unable to lock the |TASK stack guard|Invalid wait context|Dentry \S+"
                r"|workqueue lockup - pool )",
                example="BUG: kernel NULL pointer dereference, address: 0000000000000010",
            ),
            Wording(
                source="Linux, arch/arm64/mm/fault.c die_kernel_fault",
                substring="Unable to handle kernel ",
                regex=r"Unable to handle kernel [A-Za-z][\w -]+ at virtual address [\da-f]{4,16}",
                example="Unable to handle kernel NULL pointer dereference at virtual address "
                "0000000000000010",
            ),
        ),
        status=Status.WARN,
        what="kernel bug",
        fix=_REBOOT,
    ),
    KernelLogPattern(
        name="fault",
        wordings=(
            Wording(
                source="Linux, arch/x86/kernel/traps.c exc_general_protection",
                substring="general protection fault",
                regex=r"general protection fault(?:, [\w -]+ 0x[\da-f]+|, maybe for address \S+)?"
                r": [\da-f]{4} \[#\d+\]",
                example="general protection fault, probably for non-canonical address "
                "0xdead000000000100: 0000 [#1] PREEMPT SMP NOPTI",
            ),
        ),
        status=Status.WARN,
        what="the kernel touched memory that it may not",
        fix=_REBOOT,
    ),
    KernelLogPattern(
        name="rcu_stall",
        wordings=(
            Wording(
                source="Linux 3.x to 6.12, kernel/rcu/tree_stall.h, tree_exp.h; `rcu: ` since 4.19",
                substring="rcu",
                regex=r"(?:rcu: )?INFO: rcu\w* (?:self-detected stall|detected (?:expedited "
                r")?stalls?) "
                r"on (?:CPU|tasks)",
                example="rcu: INFO: rcu_preempt self-detected stall on CPU",
            ),
            Wording(
                source="Linux 4.x to 6.12, kernel/rcu/tree_stall.h rcu_check_gp_kthread_starvation",
                substring="kthread starved for",
                regex=r"(?:rcu: )?rcu_\w+ kthread starved for \d+ jiffies!",
                example="rcu: rcu_sched kthread starved for 60000 jiffies!",
            ),
            Wording(
                source="Linux 5.10 to 6.12, tree_stall.h rcu_check_gp_kthread_expired_fqs_timer",
                substring="kthread timer wakeup didn't happen",
                regex=r"(?:rcu: )?rcu_\w+ kthread timer wakeup didn't happen for \d+ jiffies!",
                example="rcu: rcu_preempt kthread timer wakeup didn't happen for 5251 jiffies!",
            ),
            Wording(
                source="Linux 5.11 to 6.12, kernel/smp.c csd_lock_wait_toolong",
                substring="non-responsive CSD lock",
                regex=r"smp: csd: Detected non-responsive CSD lock \(#\d+\) on CPU#\d+, waiting ",
                example="smp: csd: Detected non-responsive CSD lock (#1) on CPU#3, waiting "
                "5000000042 ns for CPU#07 do_flush_tlb_all+0x0/0x30(0x0).",
            ),
        ),
        status=Status.WARN,
        what="a CPU did not answer the kernel",
        fix="look for a CPU that is starved: in a VM at the host's load, else reboot",
    ),
    KernelLogPattern(
        name="hung_task",
        wordings=(
            Wording(
                source="Linux 3.x to 6.15, kernel/hung_task.c check_hung_task",
                substring="blocked ",
                regex=r"INFO: task .{0,15}:\d+ (?:is )?blocked (?:in I/O wait )?for more than \d+ "
                r"seconds",
                example="INFO: task python3:4242 blocked for more than 122 seconds.",
            ),
        ),
        status=Status.WARN,
        what="a process was stuck in the kernel",
        fix="look what it waited for in the stack below that line (dmesg): disk, NFS, driver",
    ),
    KernelLogPattern(
        name="cpu_heat",
        wordings=(
            Wording(
                source="Linux 2.6 to 6.12, arch/x86 therm_throt.c (Intel); 5.6 with `is`, where "
                "it lasts",
                substring=" throttled (total events",
                regex=r"(?:mce: )?(CPU\d+): (?:Core|Package) temperature (?:is )?above threshold, "
                r"cpu clock (?:is )?throttled \(total events",
                example="mce: CPU3: Core temperature above threshold, cpu clock throttled (total "
                "events = 12)",
            ),
        ),
        status=Status.WARN,
        what="slowed itself down for heat",
        fix="look at the node's fans and air flow (BMC); compare with its neighbours in the rack",
        cleared_by="temperature",
        cleared_regex=r"(?:mce: )?(CPU\d+): (?:Core|Package) temperature(?:/speed)? (?:is )?normal",
    ),
    KernelLogPattern(
        name="critical_heat",
        wordings=(
            Wording(
                source="Linux 3.x to 6.12, drivers/thermal/thermal_core.c",
                substring="critical temperature reached",
                regex=r"thermal \S+: (?:\S+: )?critical temperature reached",
                example="thermal thermal_zone0: acpitz: critical temperature reached, shutting "
                "down",
            ),
        ),
        status=Status.WARN,
        what="a part of the node was as hot as it may be",
        fix="look at the node's fans and air flow (BMC) before it is used again",
    ),
    KernelLogPattern(
        name="nmi",
        wordings=(
            Wording(
                source="Linux 3.x to 6.12, arch/x86/kernel/nmi.c pci_serr_error, io_check_error",
                substring="NMI: ",
                regex=r"NMI: (?:PCI system error \(SERR\)|IOCK error \(debug interrupt\?\)) for "
                r"reason [\da-f]+ on CPU \d",
                example="NMI: PCI system error (SERR) for reason a1 on CPU 0.",
            ),
        ),
        status=Status.WARN,
        what="a device asked for help by a non-maskable interrupt: a bus or memory error",
        fix="look in the BMC's log (superv check ipmi.sel) and at pcie.kmsg for which",
    ),
    KernelLogPattern(
        name="oom",
        wordings=(
            Wording(
                source="Linux 5.x to 6.12, mm/oom_kill.c oom_kill_process",
                substring="Killed process ",
                regex=r"(?:Out of memory|Memory cgroup out of memory|Out of memory "
                r"\(oom_kill_allocating_task\)): Killed process \d+ \(",
                example="Out of memory: Killed process 4242 (python3) total-vm:8kB, anon-rss:4kB",
            ),
            Wording(
                source="Linux before 5.0, mm/oom_kill.c",
                substring="Kill process ",
                regex=r"(?:Out of memory|Memory cgroup out of memory): Kill process \d+ \(",
                example="Out of memory: Kill process 4242 (python3) score 987 or sacrifice child",
            ),
        ),
        status=Status.WARN,
        what="a process was killed for want of memory",
        fix="look which (dmesg | grep 'Kill.* process'); give the job less to keep",
    ),
)
