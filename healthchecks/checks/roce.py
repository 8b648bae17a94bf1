"""RoCE ports: GIDs where NCCL expects them, and a lossless network configured alike everywhere."""

from __future__ import annotations

import ipaddress
import re
import shutil
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources.growth import counter_growth
from healthchecks.sources.ports import Ignore, Port, linked, netdevs, traffic_ports, uppers
from supervisor.core.setting import About

_COUNTER = re.compile(r"^\s*(rx_discards_phy|[rt]x_prio\d_pause): (\d+)$", re.MULTILINE)


@check("roce.gid", tags={"preflight", "running"}, cohort=Status.FAIL)
def roce_gid(
    ctx: Ctx,
    *,
    ignore: Ignore = (),
    index: Annotated[
        int,
        About(doc="GID index that must be RoCE v2 over IPv4 (NCCL_IB_GID_INDEX); -1: any.", ge=-1),
    ] = -1,
) -> Result:
    """RoCE ports have a RoCE v2 GID of an IPv4 address, at the same index on every node.

    The kernel fills the table in the order in which addresses appear, so an index can shift on one
    node only; NCCL_IB_GID_INDEX is then wrong there. Documentation/ABI, sysfs-class-infiniband.
    """
    found = Findings()
    shown = []
    ports = linked(ctx, traffic_ports(ctx, layer="Ethernet", ignore=ignore))
    tables = {port: _gids(ctx, port) for port in ports}
    addressed = {port.kind for port in ports if _usable(tables[port])}
    for port, table in tables.items():
        usable = _usable(table)
        known = port.said or ctx.memory.get(f"addressed:{port.key}")
        if usable:
            ctx.memory.put(f"addressed:{port.key}", True, lasting=True)
        elif index < 0 and not known and port.kind not in addressed:
            continue  # up, and used for something else: no port of its board ever had an address
        others = [f"{n} on {dev}" for n, (_, _, dev) in table.items() if not _is_of(ctx, port, dev)]
        if index >= 0 and index not in usable:
            found.fail(
                f"GID {index} is {_words(table, index)}",
                expected=f"RoCE v2 of an IPv4 address at index {index}",
                fix=_gid_fix(port, ctx, usable),
                device=port.name,
            )
        elif not usable:
            found.fail(
                "no RoCE v2 GID of an IPv4 address",
                expected="one: the interface is up and has its address",
                fix=_gid_fix(port, ctx, usable),
                device=port.name,
            )
        else:
            shown.append(f"{port.name} {min(usable)} ({usable[min(usable)]})")
        if others:
            found.warn(
                f"GIDs of interfaces that are not its own: {', '.join(others)}",
                expected=f"GIDs of {', '.join(netdevs(ctx, port))}",
                fix="look at bonds and VLANs on it",
                device=port.name,
            )
        found.fact(f"{port.name}.index", ", ".join(map(str, usable)) or "none")
    if not shown and found.result("").status is Status.OK:
        raise Skip("no RoCE port has an IPv4 address, nor had one")
    return found.result(f"RoCE v2 GIDs: {', '.join(shown)}")


def _usable(table: dict[int, tuple[str, str, str]]) -> dict[int, str]:
    """IPv4 addresses of RoCE v2, by index."""
    return {n: ip for n, (kind, ip, _) in table.items() if kind == "RoCE v2" and ip}


def _gids(ctx: Ctx, port: Port) -> dict[int, tuple[str, str, str]]:
    """Entries that are set, by index: type, IPv4 address or "", interface. Raises OSError, Unknown.

    Attributes of an entry that is not set can't be read: EINVAL.
    """
    found = {}
    names = ctx.names(f"{port.at}/gids")
    if not names:
        raise Unknown(f"{port.name} shows no GIDs")
    for n in sorted(map(int, names)):
        gid = ctx.text(f"{port.at}/gids/{n}")
        if not gid.replace(":", "").strip("0"):
            continue
        try:
            address = ipaddress.IPv6Address(gid)
        except ValueError:
            raise Unknown(f"{port.name}: GID {n} is {gid[:50]!r}") from None
        mapped = address.ipv4_mapped
        found[n] = (
            ctx.text(f"{port.at}/gid_attrs/types/{n}"),
            str(mapped) if mapped else "",
            ctx.maybe(f"{port.at}/gid_attrs/ndevs/{n}") or "",
        )
    return found


def _is_of(ctx: Ctx, port: Port, netdev: str) -> bool:
    """Whether the interface is the port's own, or a VLAN, bond or bridge above it."""
    own = netdevs(ctx, port)
    if not netdev or not own or netdev in own:
        return True
    return any(netdev in uppers(ctx, name) for name in own)


def _words(table: dict[int, tuple[str, str, str]], index: int) -> str:
    if index not in table:
        return "not set"
    kind, ip, _ = table[index]
    return f"{kind} of {ip or 'a link-local address'}"


def _gid_fix(port: Port, ctx: Ctx, usable: dict[int, str]) -> str:
    names = " ".join(netdevs(ctx, port)) or "its interface"
    if usable:
        return f"it is at {', '.join(map(str, usable))}: bring {names} down and up, or reboot"
    return f"give {names} its IPv4 address and bring it up: ip addr show dev {names}"


@check(
    "roce.qos",
    tags={"preflight"},
    resource="dcb",
    deadline_s=10.0,
    cohort=Status.FAIL,
    untested="no RoCE port: built against dcb-pfc(8) and the mlx5 driver's documentation of sysfs",
)
def roce_qos(
    ctx: Ctx,
    *,
    ignore: Ignore = (),
    pfc: Annotated[
        tuple[int, ...], About(doc="Priorities with flow control; empty: as the cohort.")
    ] = (),
    ecn: Annotated[
        tuple[int, ...], About(doc="Priorities with congestion control; empty: as the cohort.")
    ] = (),
) -> Result:
    """Flow control (PFC) and congestion control (ECN) of RoCE ports are as on the other nodes.

    `dcb pfc show` (iproute2) and ecn/roce_{np,rp}/enable of NVIDIA's OFED (its manual, "Explicit
    Congestion Notification"); the inbox driver has no such files.
    """
    ports = linked(ctx, traffic_ports(ctx, layer="Ethernet", ignore=ignore))
    if shutil.which("dcb") is None and not pfc:
        raise Skip("dcb (iproute2) is not installed")
    found = Findings()
    shown = []
    for port in ports:
        names = netdevs(ctx, port)
        if not names:
            found.unknown("has no network interface", device=port.name)
        for name in names:
            on = _pfc(ctx, name)
            _compare(found, port, "PFC", on, pfc, f"dcb pfc set dev {name} prio-pfc …")
            np, rp = (_ecn(ctx, name, side) for side in ("roce_np", "roce_rp"))
            if np is None or rp is None:
                if ecn:
                    found.unknown("the driver does not show its ECN setting", device=port.name)
                text = "not shown by this driver"
            else:
                both = tuple(sorted(set(np) & set(rp)))
                _compare(
                    found, port, "ECN", both, ecn, f"echo 1 > /sys/class/net/{name}/ecn/*/enable/…"
                )
                text = f"np {_list(np)}, rp {_list(rp)}"
            found.fact(f"{port.name}.pfc", _list(on))
            found.fact(f"{port.name}.ecn", text)
            shown.append(f"{port.name} PFC {_list(on)}, ECN {text}")
    if not shown and not found.facts:
        raise Skip("no RoCE port has a network interface")
    return found.result("; ".join(shown))


def _compare(
    found: Findings, port: Port, what: str, on: tuple[int, ...], wanted: tuple[int, ...], fix: str
) -> None:
    if wanted and set(on) != set(wanted):
        found.fail(
            f"{what} on priorities {_list(on)}",
            expected=f"on {_list(tuple(wanted))}",
            fix=fix,
            device=port.name,
        )


def _list(priorities: tuple[int, ...]) -> str:
    return ",".join(map(str, priorities)) or "none"


def _pfc(ctx: Ctx, netdev: str) -> tuple[int, ...]:
    """Priorities with flow control. Raises Unknown."""
    done = ctx.command("dcb", "pfc", "show", "dev", netdev, deadline_s=4.5)
    line = re.search(r"prio-pfc((?:\s+\d:(?:on|off))+)", done.out)
    if done.rc or line is None:
        why = (done.err.strip() or done.out.strip() or f"exit code {done.rc}")[:100]
        raise Unknown(f"dcb pfc show dev {netdev}: {why.splitlines()[0]}")
    return tuple(int(n) for n in re.findall(r"(\d):on", line[1]))


def _ecn(ctx: Ctx, netdev: str, side: str) -> tuple[int, ...] | None:
    """Priorities with ECN on one side; None where the driver does not show it. Raises OSError."""
    at = f"sys/class/net/{netdev}/ecn/{side}/enable"
    names = ctx.names(at)
    if not names:
        return None
    return tuple(int(n) for n in names if ctx.text(f"{at}/{n}") == "1")


@check(
    "roce.discards",
    tags={"preflight", "running"},
    resource="ethtool",
    deadline_s=10.0,
    drains=False,
    untested="no RoCE port: built against the counters in the mlx5 driver's documentation",
)
def roce_discards(
    ctx: Ctx,
    *,
    ignore: Ignore = (),
    per_s: Annotated[
        float, About(doc="Packets discarded at the port that are tolerated.", unit="/s")
    ] = 10.0,
) -> Result:
    """RoCE ports discard no packets for want of buffers; pause frames are shown.

    rx_discards_phy, rx_prioP_pause and tx_prioP_pause of `ethtool -S` (NVIDIA, "Understanding mlx5
    ethtool counters"). Discards on a lossless network are flow control that does not work. The
    threshold is a proposal.
    """
    ports = linked(ctx, traffic_ports(ctx, layer="Ethernet", ignore=ignore))
    if shutil.which("ethtool") is None:
        raise Skip("ethtool is not installed")
    found = Findings()
    for port in ports:
        for name in netdevs(ctx, port):
            done = ctx.command("ethtool", "-S", name, deadline_s=4.5)
            counters = {n: int(v) for n, v in _COUNTER.findall(done.out)}
            if "rx_discards_phy" not in counters:
                why = done.why() if done.rc else "shows no rx_discards_phy"
                found.unknown(f"ethtool -S {name}: {why}", device=port.name)
                continue
            for counter, value in counters.items():
                delta = ctx.memory.counter_delta(f"{port.key}/{counter}", value)
                if delta is not None and delta.by and counter.endswith("_pause"):
                    found.metric(f"{port.name}.{counter}", delta.per_s, "/s")
            growth = counter_growth(ctx, f"{port.key}/discards", counters["rx_discards_phy"], 60.0)
            if growth is None:
                found.not_yet("first look: no rate yet")
            elif growth.lately > per_s * 60:
                found.warn(
                    f"{growth.lately:.0f} packets discarded within 60 s",
                    expected=f"at most {per_s * 60:g}",
                    fix="compare PFC with the switch (check roce.qos)",
                    device=port.name,
                )
    return found.result("no discards that matter")
