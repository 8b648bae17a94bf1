"""Error counters of InfiniBand and RoCE ports, as growth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Status, check
from healthchecks.frame.context import Ctx
from healthchecks.sources.growth import counter_growth
from healthchecks.sources.ports import Ignore, Port, traffic_ports
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
_FOUR_BITS = 0xF
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
    events: bool = False  # single ones count, however long the looks are apart
    folder: str = "counters"  # of the port: the driver's own are in hw_counters


# What drivers call packets that were sent again: they were lost, or came late, on the way. Not
# those of connections that were given up: every node says so of a peer that died.
_RETRIES = (
    ("local_ack_timeout_err", "acknowledgements that timed out"),  # mlx5
    ("packet_seq_err", "packets that the peer missed"),
    ("implied_nak_seq_err", "answers that were missed"),
    ("to_retransmits", "acknowledgements that timed out"),  # bnxt_re
    ("seq_err_naks_rcvd", "packets that the peer missed"),
    ("retrans_timeout_events", "acknowledgements that timed out"),  # efa
)
_RETRIES_PER_S = 1.0


def _retries(fix: str) -> tuple[_Rule, ...]:
    return tuple(
        _Rule(
            name=name,
            window_s=60.0,
            most=60.0 * _RETRIES_PER_S,
            status=Status.WARN,
            meaning=meaning,
            fix=fix,
            folder="hw_counters",
        )
        for name, meaning in _RETRIES
    )


@check("ib.counters", tags={"preflight", "running"}, drains=False)
def ib_counters(
    ctx: Ctx,
    *,
    ignore: Ignore = (),
    link_downed: Annotated[
        int, About(doc="Link losses since the last look that are tolerated.")
    ] = 0,
    symbol_errors_per_hour: Annotated[
        float, About(doc="Symbol errors within an hour that are tolerated.", unit="/h")
    ] = 120.0,
    recoveries_per_minute: Annotated[
        float, About(doc="Link error recoveries within a minute that are tolerated.", unit="/min")
    ] = 5.0,
) -> Result:
    """InfiniBand ports lose no link and no symbols; the counters' totals since boot mean nothing.

    Thresholds: NVIDIA/NVSentinel's NIC monitor (link_downed 1, link error recovery 5 a minute,
    symbol errors 120 an hour, which is the IBTA's bit error rate of 1e-12). Packets sent again
    (hw_counters of mlx5) are a WARN at one a second for a minute, a proposal. A link lost between
    two looks that are further apart than an hour is a WARN: it may be long over. A counter that has
    reached its width no longer tells; those of 4 bits are not spoken of then. LPF ports are never
    asked: that floods the kernel's log.
    """
    rules = (
        _Rule(
            name="link_downed",
            window_s=_HOUR_S,
            most=link_downed,
            status=Status.FAIL,
            meaning="link losses",
            fix=_CABLE,
            events=True,
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
            events=True,
        ),
        _Rule(
            name="excessive_buffer_overrun_errors",
            window_s=_HOUR_S,
            most=0,
            status=Status.WARN,
            meaning="buffer overruns",
            fix="look at flow control and firmware of the port and its switch",
            events=True,
        ),
    )
    ports = traffic_ports(ctx, layer="InfiniBand", ignore=ignore)
    fix = "look at this port's cable and at congestion in the fabric; compare with its neighbours"
    return _judge(ctx, ports, "counters", rules + _retries(fix))


@check("roce.counters", tags={"preflight", "running"}, drains=False)
def roce_counters(
    ctx: Ctx,
    *,
    ignore: Ignore = (),
    slow_restarts_per_s: Annotated[
        float, About(doc="Slow restarts of congested flows that are tolerated.", unit="/s")
    ] = 10.0,
    out_of_sequence_per_s: Annotated[
        float,
        About(doc="Packets out of order (lost, or on other paths) that are tolerated.", unit="/s"),
    ] = 10.0,
) -> Result:
    """RoCE and EFA ports are not choked by congestion and lose no packets.

    Thresholds: NVIDIA/NVSentinel's NIC monitor for roce_slow_restart (10/s); out_of_sequence
    likewise, and packets sent again (1/s), a proposal. Counters: hw_counters of mlx5 (NVIDIA,
    "Understanding mlx5 Linux counters"), of Broadcom's bnxt_re and of AWS's efa (their drivers).
    """
    fix = "compare PFC and ECN with the switch (check roce.qos); look for drops there"
    rules = _retries(fix) + tuple(
        _Rule(
            name=name,
            window_s=60.0,
            most=60.0 * most,
            status=Status.WARN,
            meaning=meaning,
            fix=fix,
            folder="hw_counters",
        )
        for name, most, meaning in (
            ("roce_slow_restart", slow_restarts_per_s, "slow restarts"),
            ("out_of_sequence", out_of_sequence_per_s, "packets out of sequence"),
            ("oos_drop_count", out_of_sequence_per_s, "packets out of sequence"),  # bnxt_re
        )
    )
    ports = [p for p in traffic_ports(ctx, ignore=ignore) if p.layer != "InfiniBand"]
    if not ports:
        raise Skip("no Ethernet port that carries data")
    return _judge(ctx, ports, "hw_counters", rules, extra=("np_cnp_sent", "rp_cnp_handled"))


def _judge(
    ctx: Ctx, ports: Sequence[Port], folder: str, rules: Sequence[_Rule], extra: Sequence[str] = ()
) -> Result:
    """Judge what the ports show. What no port of its board shows is not there to be judged."""
    found = Findings()
    folders = dict.fromkeys([folder, *(rule.folder for rule in rules)])
    shown = {(port, f): set(ctx.names(f"{port.at}/{f}")) for port in ports for f in folders}
    of_board: dict[tuple[str, str], set[str]] = {}
    for (port, f), names in shown.items():
        of_board.setdefault((port.kind, f), set()).update(names)
    judged = 0
    for port in ports:
        if not shown[port, folder] and of_board[port.kind, folder]:
            found.unknown(f"shows no {folder}, unlike its siblings", device=port.name)
            continue
        counted = [rule for rule in rules if rule.name in of_board[port.kind, rule.folder]]
        judged += any(
            [_one(ctx, found, port, f"{rule.folder}/{rule.name}", rule) for rule in counted]
        )
        for name in shown[port, folder].intersection(extra):
            _rate(ctx, found, port, f"{folder}/{name}")
    if not judged and found.result("").status is Status.OK:
        raise Skip(f"no port counts errors in {folder} (virtual functions and other makes don't)")
    return found.result(f"{judged} ports, no growth that matters")


def _one(ctx: Ctx, found: Findings, port: Port, path: str, rule: _Rule) -> bool:
    """Judge one counter of one port; False where the port does not count it."""
    try:
        text = ctx.text(f"{port.at}/{path}")
        if text.startswith("N/A"):  # "N/A (no PMA)": linux/drivers/infiniband/core/sysfs.c
            return False
        value = int(text)
    except FileNotFoundError:
        found.unknown(f"shows no {rule.name}", device=port.name)
        return True
    except (OSError, ValueError) as error:
        found.unknown(f"{rule.name} can't be read: {error}", device=port.name)
        return True
    full = _FULL.get(rule.name, value + 1)
    if value >= full:
        if full > _FOUR_BITS:  # those are full for good after any training, and say nothing
            found.warn(
                f"{rule.name} is full at {value} and no longer counts",
                expected="a counter with room",
                fix=f"perfquery -C {port.device} -P {port.number} -R",
                device=port.name,
            )
        return full > _FOUR_BITS
    growth = counter_growth(ctx, f"{port.key}/{rule.name}", value, rule.window_s)
    if growth is None:
        found.not_yet("first look: no rate yet")
        return True
    if growth.last:
        found.metric(f"{port.name}.{rule.name}", growth.per_s, "/s")
    lately = growth.count if rule.events else growth.lately
    if lately > rule.most:
        span = growth.span_s if rule.events else rule.window_s
        long_ago = rule.events and span > rule.window_s  # nobody knows when: it may be over
        found.add(
            Status.WARN if long_ago else rule.status,
            f"{lately:.0f} {rule.meaning} within {_span(span)}",
            expected=f"at most {rule.most:g} {rule.meaning} within {_span(rule.window_s)}",
            fix=rule.fix.format(device=port.bdf or port.device),
            device=port.name,
        )
    return True


def _rate(ctx: Ctx, found: Findings, port: Port, path: str) -> None:
    """A counter that is shown and not judged."""
    value = ctx.maybe(f"{port.at}/{path}")
    counts = value is not None and value.isdigit()
    delta = ctx.memory.counter_delta(f"{port.key}/{path}", float(value or 0)) if counts else None
    if delta is not None and delta.by:
        found.metric(f"{port.name}.{path.rpartition('/')[2]}", delta.per_s, "/s")


def _span(window_s: float) -> str:
    if window_s == _HOUR_S:
        return "an hour"
    return f"{window_s:.0f} s" if window_s < _HOUR_S else f"{window_s / _HOUR_S:.1f} h"
