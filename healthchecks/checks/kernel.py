"""What the kernel wrote about links, NICs and itself."""

from __future__ import annotations

from typing import Annotated

from healthchecks.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.context import Ctx
from healthchecks.kernel_signs import Sign, watch, when
from supervisor.core.setting import About

_DAY_S = 86400.0
_BOOTING_S = 300.0  # links come up and go down while drivers load
_MOST_KINDS = 4000  # of lines, remembered by their checksums

_WINDOW = About(doc="How long what is over is shown.", unit="h", least=0)


@check("ib.flap", tags={"preflight", "running"})
def ib_flap(
    ctx: Ctx,
    *,
    warn_12h: Annotated[int, About(doc="Link losses in 12 hours to warn at.", least=1)] = 3,
    fail_24h: Annotated[int, About(doc="Link losses in 24 hours to fail at.", least=1)] = 6,
    long_s: Annotated[
        float, About(doc="A single loss as long as this is warned of.", unit="s", least=1)
    ] = 30.0,
) -> Result:
    """No RDMA port loses its link again and again.

    From the driver's lines ("mlx5_core … Link down") and the port's counter link_downed, of which
    the larger counts: 3 in 12 hours as leptonai/gpud, more than 5 in 24 hours as Azure's node
    health checks, one of 30 s as in the HV validation suite. Lines of the first five minutes after
    boot, and ports that manage NVLink switches, don't count.
    """
    from healthchecks.ports import traffic_ports

    found = Findings()
    ports = traffic_ports(ctx)
    losses, logged = _logged_losses(ctx)
    baselines = 0
    for port in ports:
        times = [at for at, _ in losses.get(port.bdf, [])]
        counted = _counted_losses(ctx, port.at, port.key)
        if counted is not None:
            baselines += 1
            times = max(times, counted, key=len)
        last_12h = sum(at > ctx.now - _DAY_S / 2 for at in times)
        last_24h = sum(at > ctx.now - _DAY_S for at in times)
        found.metric(f"{port.name}_losses_24h", last_24h)
        longest = max((lasted for _, lasted in losses.get(port.bdf, [])), default=0.0)
        fix = (
            "reseat or replace cable and transceivers (superv check ib.cable), then try the switch"
        )
        if last_24h >= fail_24h:
            found.fail(
                f"lost its link {last_24h} times in 24 h, last {when(max(times))}",
                expected=f"less than {fail_24h}",
                fix=fix,
                device=port.name,
            )
        elif last_12h >= warn_12h or longest >= long_s:
            more = f", once for {longest:.0f} s" if longest >= long_s else ""
            found.warn(
                f"lost its link {last_24h} times in 24 h, last {when(max(times))}{more}",
                expected=f"less than {warn_12h} in 12 h, and none of {long_s:g} s",
                fix=fix,
                device=port.name,
            )
    if logged and not baselines:
        found.unknown(logged, expected="a kernel log, or counters of an earlier look")
    return found.result(
        f"{len(ports)} ports without repeated link losses"
        + (" (by their counters alone)" if logged else "")
    )


def _logged_losses(ctx: Ctx) -> tuple[dict[str, list[tuple[float, float]]], str]:
    """By PCI address: when links went down in the last day and for how long (s; 0: not known).

    With why the log can't be read, or "".
    """
    import re

    from healthchecks.kernel_log import new_lines

    kept: dict[str, list[list[float]]] = dict(ctx.memory.get("losses") or {})
    why = ""
    events: list[tuple[float, str, str]] = []
    try:
        uptime_s = float(ctx.text("proc/uptime").split()[0])
        for line in new_lines(ctx, "Link down", "Link up"):
            match = re.search(r"mlx5_core ([\da-f:.]+)\b.*Link (down|up)", line.text)
            if match:
                events += [(at, match[1], match[2]) for at in line.times]
    except Unknown as error:
        why = str(error)
    else:
        events = [e for e in events if e[0] > ctx.now - uptime_s + _BOOTING_S]
    for at, bdf, what in sorted(events):
        mine = kept.setdefault(bdf, [])
        if what == "down":
            mine.append([at, 0.0])
        elif mine and mine[-1][1] == 0.0:
            mine[-1][1] = at - mine[-1][0]
    kept = {
        bdf: recent[-64:]
        for bdf, rows in kept.items()
        if (recent := [row for row in rows if row[0] > ctx.now - _DAY_S])
    }
    ctx.memory.put("losses", kept)
    return {bdf: [(at, lasted) for at, lasted in rows] for bdf, rows in kept.items()}, why


def _counted_losses(ctx: Ctx, port: str, key: str) -> list[float] | None:
    """When the port's counter grew in the last day, once for each loss; None at the first look."""
    rise = ctx.memory.rise(f"link_downed:{key}", ctx.number(f"{port}/counters/link_downed"))
    if rise is None:
        return None
    recent = ctx.memory.recent(f"link_downed:{key}", rise.by, _DAY_S)
    return [at for at, by in recent for _ in range(min(int(by), 256))]


_NIC_RESTART = "drain the node and restart the NIC (mlxfwreset, or a power cycle of the host)"
_NIC_SIGNS = (
    Sign(
        name="health",
        needle="health compromised",
        pattern=r"mlx5_core ([\da-f:.]+): ",
        status=Status.FAIL,
        what="the NIC's firmware does not answer",
        fix=_NIC_RESTART,
        lasts=True,
        undone=": firmware version: ",  # the driver started it again
    ),
    Sign(
        name="command",
        needle="Will cause a leak of a command resource",
        pattern=r"mlx5_core ([\da-f:.]+): ",
        status=Status.FAIL,
        what="a command to the NIC's firmware got no answer",
        fix=_NIC_RESTART,
        lasts=True,
        undone=": firmware version: ",
    ),
    Sign(
        name="power",
        needle="insufficient power on the PCIe slot",
        pattern=r"mlx5_core ([\da-f:.]+): ",
        status=Status.WARN,
        what="the slot says that it gives too little power",
        fix="look at the slot's power in the BIOS, and at the transceivers' power class",
        lasts=True,
    ),
    Sign(
        name="temperature",
        needle="High Temperature",
        pattern=r"mlx5_core ([\da-f:.]+): ",
        status=Status.WARN,
        what="a transceiver is too hot",
        fix="look at air flow and fans, then replace the transceiver",
    ),
    Sign(
        name="module",
        needle="Port module event[error]",
        pattern=r"mlx5_core ([\da-f:.]+): ",
        status=Status.WARN,
        what="a transceiver or cable has an error",
        fix="reseat cable and transceiver, then replace them",
    ),
)


@check("nic.kmsg", tags={"preflight", "running"})
def nic_kmsg(ctx: Ctx, *, window_h: Annotated[float, _WINDOW] = 24.0) -> Result:
    """No NIC's driver reported a firmware, power or temperature error.

    "health compromised" and a leaked command resource are FAIL until the driver has started the
    NIC again or the node boots, as in NVIDIA/NVSentinel; power and transceivers are WARN, as in
    leptonai/gpud.
    """
    from pathlib import Path

    found = Findings()
    devices = ctx.names("sys/class/infiniband")
    at = {}
    for device in devices:
        place = ctx.path(f"sys/class/infiniband/{device}/device")
        at[Path(place.readlink()).name if place.is_symlink() else ""] = device
    watch(ctx, _NIC_SIGNS, window_h * 3600, found, lambda bdf: at.get(bdf, bdf))
    if not devices and not found.metrics and "mlx5_core" not in ctx.names("sys/module"):
        raise Skip("no mlx5 driver")
    return found.result(f"nothing about {len(devices)} NICs in the kernel's log")


_REBOOT = "drain the node and reboot it; keep the lines around it for the kernel's vendor"
_KERNEL_SIGNS = (
    Sign(
        name="hard_lockup",
        needle="hard LOCKUP",
        status=Status.FAIL,
        what="a CPU was locked up with interrupts off",
        fix=f"{_REBOOT}; in a VM look at the host's load first",
    ),
    Sign(
        name="soft_lockup",
        needle="soft lockup",
        status=Status.FAIL,
        what="a CPU was stuck in the kernel",
        fix=f"{_REBOOT}; in a VM look at the host's load first",
    ),
    Sign(name="oops", needle="Oops:", status=Status.WARN, what="kernel oops", fix=_REBOOT),
    Sign(
        name="bug",
        needle="BUG",
        pattern=r"kernel BUG at|\bBUG: (?!workqueue)",
        status=Status.WARN,
        what="kernel bug",
        fix=_REBOOT,
    ),
    Sign(
        name="fault",
        needle="general protection fault",
        pattern=r"general protection fault.*(?:\[#\d|PREEMPT|SMP)",
        status=Status.WARN,
        what="the kernel touched memory that it may not",
        fix=_REBOOT,
    ),
    Sign(
        name="rcu_stall",
        needle="rcu",
        pattern=r"rcu.*(?:self-detected stall|detected (?:expedited )?stalls?)",
        status=Status.WARN,
        what="a CPU did not answer the kernel",
        fix="look for a CPU that is starved: in a VM at the host's load, else reboot",
    ),
    Sign(
        name="hung_task",
        needle="blocked for more than",
        pattern=r"task \S+ blocked for more than",
        status=Status.WARN,
        what="a process was stuck in the kernel",
        fix="look what it waited for in the stack below that line (dmesg): disk, NFS, driver",
    ),
)


@check("kernel", tags={"preflight", "running"})
def kernel(ctx: Ctx, *, window_h: Annotated[float, _WINDOW] = 24.0) -> Result:
    """The kernel had no lockup, stall, oops or hung task, and killed nothing for want of memory.

    Lines as in leptonai/gpud: lockups are FAIL, the others WARN. Kills are the growth of oom_kill
    in /proc/vmstat since the last look, so at the first look only lines count.
    """
    found = Findings()
    watch(ctx, _KERNEL_SIGNS, window_h * 3600, found)
    kills = None
    for line in ctx.text("proc/vmstat").splitlines():
        if line.startswith("oom_kill "):
            kills = int(line.split()[1])
    if kills is None:
        found.unknown("/proc/vmstat has no oom_kill", expected="a count of kills")
    else:
        rise = ctx.memory.rise("oom_kill", kills)
        found.metric("oom_kill", kills)
        recent = ctx.memory.recent("oom_kill", rise.by if rise else 0, window_h * 3600)
        if lately := sum(int(by) for _, by in recent):
            found.warn(
                f"{lately} processes were killed for want of memory in {window_h:g} h",
                expected="none",
                fix="look which (dmesg | grep 'Killed process'); give the job less to keep",
            )
    return found.result("no lockup, stall, oops or hung task in the kernel's log")


_EXPECTED_KINDS = (  # warnings that the boot of a healthy node writes
    "ACPI",
    "Disabling lock debugging due to kernel taint",
    "Unknown kernel command line parameters",
    "audit:",
    "device-mapper: core: CONFIG_IMA_DISABLE_HTABLE",
    "kauditd_printk_skb",
    "loop: module verification failed",
    "nvidia: loading out-of-tree module",
    "nvidia: module license",
    "nvidia: module verification failed",
    "NVRM: loading NVIDIA",
    "pci ",
    "pcieport ",
    "systemd",
)


@check("kmsg.novelty", tags={"running", "preflight"}, drains=False)
def kmsg_novelty(
    ctx: Ctx,
    *,
    expected: Annotated[
        tuple[str, ...], About(doc="How lines begin that are not news, beside those known.")
    ] = (),
) -> Result:
    """New kinds of warnings in the kernel's log are shown; they are information and no fault.

    A kind is a line without its numbers and addresses. What this node had before is not new, in
    whatever boot; the first look of a node learns. As imbue-ai/cluster-health's dmesg whitelist.
    """
    import zlib

    from healthchecks.kernel_log import new_lines

    kept = ctx.memory.get("kinds")
    known = dict.fromkeys(kept or [])
    fresh: dict[str, str] = {}
    passed = (*_EXPECTED_KINDS, *expected)
    for line in new_lines(ctx, level=4):
        kind = _kind(line.text)
        number = zlib.crc32(kind.encode())
        if number not in known and not kind.startswith(passed):
            fresh.setdefault(kind, line.text.splitlines()[0][:100])
            known[number] = None
    ctx.memory.put("kinds", [*known][-_MOST_KINDS:], lasting=True)
    found = Findings()
    found.metric("new_kinds", 0 if kept is None else len(fresh))
    if kept is None:
        return found.result(f"first look: {len(fresh)} kinds of warnings learnt")
    shown = "; ".join([*fresh.values()][:5])
    return found.result(
        f"{len(fresh)} new kinds of warnings: {shown}" if fresh else "no new kind of warning"
    )


def _kind(text: str) -> str:
    """A line without what differs from one of its kind to the next."""
    import re

    first = text.splitlines()[0] if text else ""
    return re.sub(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+", "#", first)[:80]
