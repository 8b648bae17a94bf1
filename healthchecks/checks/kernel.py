"""What the kernel wrote about links, NICs and itself."""

from __future__ import annotations

from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources.kernel_patterns import BOOTING_S, WindowH, report_matches
from healthchecks.sources.wordings_kernel import KERNEL_PATTERNS as _KERNEL_PATTERNS
from healthchecks.sources.wordings_nic import BDF as _BDF
from healthchecks.sources.wordings_nic import NIC_PATTERNS as _NIC_PATTERNS
from supervisor.core.setting import About
from supervisor.host.terminal import date_time

_DAY_S = 86400.0
_MAX_KINDS = 4000  # of lines, remembered by their checksums


@check("ib.flap", tags={"preflight", "running"})
def ib_flap(
    ctx: Ctx,
    *,
    warn_12h: Annotated[int, About(doc="Link losses in 12 hours to warn at.", ge=1)] = 3,
    fail_24h: Annotated[int, About(doc="Link losses in 24 hours to fail at.", ge=1)] = 6,
    long_s: Annotated[
        float, About(doc="A single loss as long as this is warned of.", unit="s", ge=1)
    ] = 30.0,
) -> Result:
    """No RDMA port loses its link again and again.

    From the driver's lines ("mlx5_core … Link down", "… Port: 1 Link DOWN", "NIC Link is Down") and
    the port's counter link_downed, of which the largest counts: 3 in 12 hours as leptonai/gpud,
    more than 5 in 24 hours as Azure's node
    health checks, one of 30 s as in the HV validation suite. Lines of the first five minutes after
    boot, and ports that manage NVLink switches, don't count.
    """
    from healthchecks.sources.ports import netdevs, traffic_ports

    found = Findings()
    ports = traffic_ports(ctx)
    losses, unread = _logged_losses(ctx)
    baselines = 0
    for port in ports:
        # A RoCE port is spoken of in several forms at once: the fullest counts, not their sum.
        names = [f"{port.bdf} interface", f"{port.bdf} port {port.number}"]
        names += [f"{name} netdev" for name in netdevs(ctx, port)]
        logged = max((losses.get(name, []) for name in names), key=len)
        times = [at for at, _ in logged]
        counted = _counted_losses(ctx, port.at, port.key)
        if counted is not None:
            baselines += 1
            times = max(times, counted, key=len)
        last_12h = sum(at > ctx.now - _DAY_S / 2 for at in times)
        last_24h = sum(at > ctx.now - _DAY_S for at in times)
        found.metric(f"{port.name}_losses_24h", last_24h)
        longest = max((lasted for _, lasted in logged), default=0.0)
        fix = (
            "reseat or replace cable and transceivers (superv check ib.cable), then try the switch"
        )
        if last_24h >= fail_24h:
            found.fail(
                f"lost its link {last_24h} times in 24 h, last {date_time(max(times))}",
                expected=f"less than {fail_24h}",
                fix=fix,
                device=port.name,
            )
        elif last_12h >= warn_12h or longest >= long_s:
            more = f", once for {longest:.0f} s" if longest >= long_s else ""
            found.warn(
                f"lost its link {last_24h} times in 24 h, last {date_time(max(times))}{more}",
                expected=f"less than {warn_12h} in 12 h, and none of {long_s:g} s",
                fix=fix,
                device=port.name,
            )
    if unread is not None and not baselines:
        found.unmeasured(unread, expected="a kernel log, or counters of an earlier look")
    return found.result(
        f"{len(ports)} ports without repeated link losses"
        + (" (by their counters alone)" if unread is not None else "")
    )


# How drivers say that a link went: the device is an address, or an interface's name.
_LINK = (  # form, regex of address or interface, port's number where it says one, and word
    (  # Linux, drivers/net/ethernet/mellanox/mlx5/core/en_main.c: of an interface (RoCE, IPoIB)
        "interface",
        rf"mlx5_core {_BDF}(?: [^ :]+)?: Link ()(down|up)\b",
    ),
    (  # Linux 6.13 and DOCA OFED, drivers/infiniband/hw/mlx5: of the RDMA port
        "port",
        rf"mlx5_core {_BDF}(?: [^ :]+)?: Port: (\d+) Link (DOWN|ACTIVE|UP)\b",
    ),
    (  # Linux, drivers/net/ethernet/broadcom/bnxt, intel/ice, intel/i40e
        "interface",
        rf"(?:bnxt_en|ice|i40e) {_BDF} [^ :]+: NIC Link is ()([Dd]own|[Uu]p)\b",
    ),
    ("netdev", r"mlx4_en: ([^ :]{1,15}): Link ()(Down|Up)\b"),  # Linux, mellanox/mlx4/en_netdev.c
)


def _logged_losses(ctx: Ctx) -> tuple[dict[str, list[tuple[float, float]]], Unknown | None]:
    """By address or interface and form: when links went down in the last day and for how long (s;
    0: not known). With why the log can't be read.
    """
    from healthchecks.sources.kernel_log import new_lines

    kept: dict[str, list[list[float]]] = dict(ctx.memory.get("link_losses") or {})
    events: list[tuple[float, str, str]] = []
    unread: Unknown | None = None
    try:
        uptime_s = float(ctx.text("proc/uptime").split()[0])
        for line in new_lines(ctx, "Link down", "Link up", " Link ", ": Link "):
            if link := _link_event(line.text):
                events += [(at, *link) for at in line.times]
    except Unknown as error:
        unread = error
    else:
        events = [e for e in events if e[0] > ctx.now - uptime_s + BOOTING_S]
    for at, name, what in sorted(events):
        mine = kept.setdefault(name, [])
        if what == "down":
            mine.append([at, 0.0])
        elif mine and mine[-1][1] == 0.0:
            mine[-1][1] = at - mine[-1][0]
    kept = {
        name: recent[-64:]
        for name, rows in kept.items()
        if (recent := [row for row in rows if row[0] > ctx.now - _DAY_S])
    }
    ctx.memory.put("link_losses", kept)
    return {name: [(at, lasted) for at, lasted in rows] for name, rows in kept.items()}, unread


def _link_event(text: str) -> tuple[str, str] | None:
    """Whose link, with the form of the line, and whether it went down or came up."""
    import re

    for form, regex in _LINK:
        if match := re.match(regex, text):
            number = f" {match[2]}" if match[2] else ""
            return f"{match[1]} {form}{number}", "down" if match[3].lower() == "down" else "up"
    return None


def _counted_losses(ctx: Ctx, port: str, key: str) -> list[float] | None:
    """When the port's counter grew in the last day, once for each loss; None where nothing tells:
    at the first look, and where the port does not count (other makes, `N/A (no PMA)`)."""
    text = ctx.maybe(f"{port}/counters/link_downed")
    if text is None or text.startswith("N/A"):
        return None
    delta = ctx.memory.counter_delta(
        f"link_downed:{key}", ctx.number(f"{port}/counters/link_downed")
    )
    if delta is None:
        return None
    recent = ctx.memory.recent(f"link_downed:{key}", delta.by, _DAY_S)
    return [at for at, by in recent for _ in range(min(int(by), 256))]


@check("nic.kmsg", tags={"preflight", "running"})
def nic_kmsg(ctx: Ctx, *, window_h: WindowH = 24.0) -> Result:
    """No NIC's driver reported a firmware, power or temperature error.

    A fatal error of the firmware and a leaked command resource are FAIL until the driver has
    started the NIC again or the node boots, as in NVIDIA/NVSentinel; power (after the boot, when
    slots that don't say what they give are warned of), heat, transceivers, queues and the PCIe link
    are WARN, as in leptonai/gpud.
    """
    from pathlib import Path

    found = Findings()
    devices = ctx.names("sys/class/infiniband")
    at = {}
    for device in devices:
        place = ctx.path(f"sys/class/infiniband/{device}/device")
        at[Path(place.readlink()).name if place.is_symlink() else ""] = device
        at |= dict.fromkeys(ctx.names(f"sys/class/infiniband/{device}/device/net"), device)
    report_matches(ctx, _NIC_PATTERNS, window_h * 3600, found, lambda bdf: at.get(bdf, bdf))
    if not devices and not found.metrics and "mlx5_core" not in ctx.names("sys/module"):
        raise Skip("no mlx5 driver")
    return found.result(f"nothing about {len(devices)} NICs in the kernel's log")


@check("kernel", tags={"preflight", "running"})
def kernel(ctx: Ctx, *, window_h: WindowH = 24.0) -> Result:
    """The kernel had no lockup, stall, oops or hung task, and killed nothing for want of memory.

    Lines as in leptonai/gpud: lockups are FAIL, the others WARN. Kills are told by their lines too;
    where those are lost, by the growth of oom_kill in /proc/vmstat since the last look.
    """
    found = Findings()
    report_matches(ctx, _KERNEL_PATTERNS, window_h * 3600, found)
    kills = None
    for line in ctx.text("proc/vmstat").splitlines():
        if line.startswith("oom_kill "):
            kills = int(line.split()[1])
    if kills is None:
        found.unknown("/proc/vmstat has no oom_kill", expected="a count of kills")
    else:
        delta = ctx.memory.counter_delta("oom_kill", kills)
        found.metric("oom_kill", kills)
        recent = ctx.memory.recent("oom_kill", delta.by if delta else 0, window_h * 3600)
        lately = sum(int(by) for _, by in recent)
        if lately and "oom" not in found.metrics:
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

    from healthchecks.sources.kernel_log import new_lines

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
    ctx.memory.put("kinds", [*known][-_MAX_KINDS:], lasting=True)
    found = Findings()
    found.metric("new_kinds", 0 if kept is None else len(fresh))
    if kept is None:
        found.not_yet(f"first look: {len(fresh)} kinds of warnings learnt")
    shown = "; ".join([*fresh.values()][:5])
    return found.result(
        f"{len(fresh)} new kinds of warnings: {shown}" if fresh else "no new kind of warning"
    )


def _kind(text: str) -> str:
    """A line without what differs from one of its kind to the next."""
    import re

    first = text.splitlines()[0] if text else ""
    return re.sub(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+", "#", first)[:80]
