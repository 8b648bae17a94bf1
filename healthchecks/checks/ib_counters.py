"""Error counters of InfiniBand and RoCE ports, as growth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from healthchecks.check import Findings, Result, Skip, Status, check
from healthchecks.context import Ctx
from healthchecks.growth import grown
from healthchecks.ports import Port, traffic_ports
from supervisor.core.setting import About

_HOUR_S = 3600.0
# Widths of the PMA's classic counters, which stick at their highest value (IBTA, PortCounters;
# linux/drivers/infiniband/core/sysfs.c).
_FULL = {
    "symbol_error": 0xFFFF,
    "link_error_recovery": 0xFF,
    "link_downed": 0xFF,
    "local_link_integrity_errors": 0xF,
    "excessive_buffer_overrun_errors": 0xF,
}
_IGNORE = About(doc="RDMA devices not to look at: names as mlx5_9, or PCI addresses.")
_CABLE = "look at the cable and both transceivers: mlxlink -d {device} -m -c; reseat, then replace"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """A counter, and how much of it is too much within a window."""

    name: str
    window_s: float
    most: float
    status: Status
    meaning: str
    fix: str


@check("ib.counters", tags={"preflight", "running"}, drains=False)
def ib_counters(
    ctx: Ctx,
    *,
    ignore: Annotated[tuple[str, ...], _IGNORE] = (),
    link_downed: Annotated[int, About(doc="Link losses since the last look that are fine.")] = 0,
    symbol_errors_per_hour: Annotated[
        float, About(doc="Symbol errors within an hour that are fine.", unit="/h")
    ] = 120.0,
    recoveries_per_minute: Annotated[
        float, About(doc="Link error recoveries within a minute that are fine.", unit="/min")
    ] = 5.0,
) -> Result:
    """InfiniBand ports lose no link and no symbols; the counters' totals since boot mean nothing.

    Thresholds: NVIDIA/NVSentinel's NIC monitor (link_downed 1, link error recovery 5 a minute,
    symbol errors 120 an hour, which is the IBTA's bit error rate of 1e-12). A counter that has
    reached its width no longer tells. LPF ports are never asked: that floods the kernel's log.
    """
    rules = (
        _Rule(
            name="link_downed",
            window_s=_HOUR_S,
            most=link_downed,
            status=Status.FAIL,
            meaning="link losses",
            fix=_CABLE,
        ),
        _Rule(
            name="symbol_error",
            window_s=_HOUR_S,
            most=symbol_errors_per_hour,
            status=Status.FAIL,
            meaning="symbol errors",
            fix=_CABLE,
        ),
        _Rule(
            name="link_error_recovery",
            window_s=60.0,
            most=recoveries_per_minute,
            status=Status.WARN,
            meaning="link error recoveries",
            fix=_CABLE,
        ),
        _Rule(
            name="local_link_integrity_errors",
            window_s=_HOUR_S,
            most=0,
            status=Status.WARN,
            meaning="link integrity errors",
            fix=_CABLE,
        ),
        _Rule(
            name="excessive_buffer_overrun_errors",
            window_s=_HOUR_S,
            most=0,
            status=Status.WARN,
            meaning="buffer overruns",
            fix="look at flow control and firmware of the port and its switch",
        ),
    )
    ports = traffic_ports(ctx, layer="InfiniBand", but=ignore)
    return _judge(ctx, ports, "counters", rules)


@check("roce.counters", tags={"preflight", "running"}, drains=False)
def roce_counters(
    ctx: Ctx,
    *,
    ignore: Annotated[tuple[str, ...], _IGNORE] = (),
    slow_restarts_per_s: Annotated[
        float, About(doc="Slow restarts of congested flows that are fine.", unit="/s")
    ] = 10.0,
    out_of_sequence_per_s: Annotated[
        float, About(doc="Packets out of order (lost, or on other paths) that are fine.", unit="/s")
    ] = 10.0,
) -> Result:
    """RoCE ports are not choked by congestion and lose no packets.

    Thresholds: NVIDIA/NVSentinel's NIC monitor for roce_slow_restart (10/s); out_of_sequence and
    local_ack_timeout_err likewise, a proposal. Counters: hw_counters of mlx5 (NVIDIA,
    "Understanding mlx5 Linux counters").
    """
    rules = tuple(
        _Rule(
            name=name,
            window_s=60.0,
            most=60.0 * most,
            status=Status.WARN,
            meaning=meaning,
            fix="compare PFC and ECN with the switch (check roce.qos); look for drops there",
        )
        for name, most, meaning in (
            ("roce_slow_restart", slow_restarts_per_s, "slow restarts"),
            ("out_of_sequence", out_of_sequence_per_s, "packets out of sequence"),
            ("local_ack_timeout_err", 1.0, "acknowledgements that timed out"),
        )
    )
    ports = traffic_ports(ctx, layer="Ethernet", but=ignore)
    return _judge(ctx, ports, "hw_counters", rules, extra=("np_cnp_sent", "rp_cnp_handled"))


def _judge(
    ctx: Ctx, ports: Sequence[Port], folder: str, rules: Sequence[_Rule], extra: Sequence[str] = ()
) -> Result:
    found = Findings()
    shown, first = 0, 0
    for port in ports:
        names = set(ctx.names(f"{port.at}/{folder}"))
        if not names:
            continue
        shown += 1
        for rule in rules:
            first += _one(ctx, found, port, f"{folder}/{rule.name}", rule)
        for name in names.intersection(extra):
            _rate(ctx, found, port, f"{folder}/{name}")
    if not shown:
        raise Skip(f"no port shows {folder} (virtual functions don't)")
    for port in ports:
        if not ctx.names(f"{port.at}/{folder}"):
            found.unknown(f"shows no {folder}, unlike its siblings", device=port.name)
    what = "first look: no rate yet" if first else "no growth that matters"
    return found.result(f"{shown} ports, {what}")


def _one(ctx: Ctx, found: Findings, port: Port, path: str, rule: _Rule) -> bool:
    """Judge one counter of one port; True where there is nothing yet to compare it with."""
    try:
        value = int(ctx.text(f"{port.at}/{path}"))
    except FileNotFoundError:
        found.unknown(f"shows no {rule.name}", device=port.name)
        return False
    except (OSError, ValueError) as error:
        found.unknown(f"{rule.name} can't be read: {error}", device=port.name)
        return False
    if value >= _FULL.get(rule.name, value + 1):
        found.warn(
            f"{rule.name} is full at {value} and no longer counts",
            expected="a counter with room",
            fix=f"perfquery -C {port.device} -P {port.number} -R",
            device=port.name,
        )
    growth = grown(ctx, f"{port.key}/{rule.name}", value, rule.window_s)
    if growth is None:
        return True
    if growth.last:
        found.metric(f"{port.name}.{rule.name}", growth.per_s, "/s")
    if growth.lately > rule.most:
        found.add(
            rule.status,
            f"{growth.lately:.0f} {rule.meaning} within {_span(rule.window_s)}",
            expected=f"at most {rule.most:g} {rule.meaning} within {_span(rule.window_s)}",
            fix=rule.fix.format(device=port.bdf or port.device),
            device=port.name,
        )
    return False


def _rate(ctx: Ctx, found: Findings, port: Port, path: str) -> None:
    """A counter that is shown and not judged."""
    value = ctx.maybe(f"{port.at}/{path}")
    rise = ctx.memory.rise(f"{port.key}/{path}", float(value)) if value else None
    if rise is not None and rise.by:
        found.metric(f"{port.name}.{path.rpartition('/')[2]}", rise.per_s, "/s")


def _span(window_s: float) -> str:
    return "an hour" if window_s == _HOUR_S else f"{window_s:.0f} s"
