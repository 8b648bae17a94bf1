"""Measurements over time: which are worth a plot, and which nodes are far from the others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from supervisor.core.nodeset import natural_sort_key
from supervisor.fleet.record import Fleet
from supervisor.host.terminal import one_line
from supervisor.report.model import Outlier, Point, Trend, names

POINTS = 120  # of one line
NAMED = 4  # outliers of one plot
FAR = 6.0  # times the usual distance from the median; 1.4826 MAD is a standard deviation


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Measurements that share a plot."""

    title: str
    pattern: str  # of CHECK[TARGET].METRIC; the group is the device
    min_deviation: float  # less than this from the median is nothing, in the metric's unit
    low_is_bad: bool = False
    rare: bool = False  # measured only where something happened: whoever has it stands out


# What wears out or runs away before it fails. A node's line is that of its worst device.
KINDS = (
    Kind(title="GPU temperature", pattern=r"thermal\.(gpu\d+)\.temperature", min_deviation=8),
    Kind(title="GPU memory temperature", pattern=r"thermal\.(gpu\d+)\.memory", min_deviation=8),
    Kind(
        title="Margin to the GPU's slowdown",
        pattern=r"thermal\.(gpu\d+)\.margin",
        min_deviation=8,
        low_is_bad=True,
    ),
    Kind(title="GPU time throttled", pattern=r"clock\.events\.(gpu\d+)\..+", min_deviation=5),
    Kind(
        title="Corrected memory errors",
        pattern=r"ecc\.corrected_rate\.(gpu\d+)\.(?:dram|sram)",
        min_deviation=100,
    ),
    Kind(
        title="Uncorrectable memory errors since the driver was loaded",
        pattern=r"ecc\.unc_volatile\.(gpu\d+)\.\w+",
        min_deviation=1,
    ),
    Kind(
        title="Uncorrectable memory errors of the GPU's life",
        pattern=r"ecc\.unc_aggregate\.(gpu\d+)\.\w+",
        min_deviation=1,
    ),
    Kind(
        title="Rows remapped, corrected errors",
        pattern=r"remap\.unc\.(gpu\d+)\.corrected",
        min_deviation=4,
    ),
    Kind(
        title="Rows remapped, uncorrectable errors",
        pattern=r"remap\.unc\.(gpu\d+)\.uncorrected",
        min_deviation=1,
    ),
    Kind(
        title="NVLink errors between looks",
        pattern=r"nvlink\.errors\.(gpu\d+)\.(?!\w+_ber$)\w+",
        min_deviation=1,
    ),
    Kind(title="PCIe replays", pattern=r"pcie\.errors\.(gpu\d+)\.replays", min_deviation=10),
    Kind(title="Xids", pattern=r"xid\.(xid_\d+)", min_deviation=1, rare=True),
    Kind(
        title="InfiniBand link errors",
        pattern=r"ib\.counters\.(.+)\.(?:symbol_error|link_error_recovery|link_downed"
        r"|local_link_integrity_errors)",
        min_deviation=0.001,
        rare=True,
    ),
    Kind(title="Link losses in 24 h", pattern=r"ib\.flap\.(.+)_losses_24h", min_deviation=1),
    Kind(title="RoCE discards", pattern=r"roce\.discards\.(.+)\.rx_discards_phy", min_deviation=1),
    Kind(title="NFS, a first answer", pattern=r"nfs\.alive\[(.+)\]\.\w+", min_deviation=0.05),
    Kind(
        title="NFS, round trip of reads and writes",
        pattern=r"nfs\.passive(?:\[.+\])?\.(.+) (?:READ|WRITE) rtt",
        min_deviation=0.02,
    ),
    Kind(
        title="NFS, share of the client's queue",
        pattern=r"nfs\.passive(?:\[.+\])?\.(.+) (?:READ|WRITE) queue share",
        min_deviation=20,
    ),
    Kind(title="Space used", pattern=r"fs\.local\[(.+)\]\.space_used", min_deviation=15),
    Kind(title="CPU time stolen", pattern=r"cpu\.steal\.(steal)", min_deviation=2),
)
_PATTERNS = [re.compile(kind.pattern) for kind in KINDS]

Lines = dict[str, list[Point]]  # by node


def trends_of(fleet: Fleet, since: float, now: float) -> tuple[tuple[Trend, ...], tuple[str, ...]]:
    """Those with data, and the titles of those where every value was zero."""
    lines: list[Lines] = [{} for _ in KINDS]
    units = [""] * len(KINDS)
    known: dict[str, tuple[int, str] | None] = {}
    for node, at, metrics in fleet.samples(since, now, POINTS):
        for index, (value, on, unit) in _worst_of(metrics, known).items():
            lines[index].setdefault(node, []).append(Point(at=at, value=value, on=on))
            units[index] = unit
    trends, all_zero = [], []
    for kind, unit, found in zip(KINDS, units, lines, strict=True):
        if found and not any(p.value for points in found.values() for p in points):
            all_zero.append(kind.title)
        elif found:
            trends.append(_trend(kind, unit, found))
    return tuple(trends), tuple(all_zero)


def _worst_of(
    metrics: Mapping[str, tuple[float, str]], known: dict[str, tuple[int, str] | None]
) -> dict[int, tuple[float, str, str]]:
    """By kind: the worst value of one look, its device and unit. `known` is kept between looks."""
    found: dict[int, tuple[float, str, str]] = {}
    for name, (value, unit) in metrics.items():
        try:
            place = known[name]
        except KeyError:
            place = known[name] = _place(name)
        if place is None:
            continue
        index, on = place
        best = found.get(index)
        if best is None or (value < best[0] if KINDS[index].low_is_bad else value > best[0]):
            found[index] = (value, on, unit)
    return found


def _place(name: str) -> tuple[int, str] | None:
    for index, pattern in enumerate(_PATTERNS):
        if match := pattern.fullmatch(name):
            return index, one_line(match[1], 80)
    return None


def _trend(kind: Kind, unit: str, lines: Mapping[str, Sequence[Point]]) -> Trend:
    worst = max if not kind.low_is_bad else min
    peaks = {node: worst(points, key=lambda p: p.value) for node, points in lines.items()}
    middle = median(p.value for p in peaks.values())
    far = _far({node: peak.value for node, peak in peaks.items()}, middle, kind)
    every = [(point, node) for node, points in lines.items() for point in points]
    lowest, lowest_node = min(every, key=lambda e: e[0].value)
    highest, highest_node = max(every, key=lambda e: e[0].value)
    return Trend(
        title=kind.title,
        unit=unit,
        nodes=len(lines),
        lowest=lowest,
        lowest_node=names([lowest_node]),
        highest=highest,
        highest_node=names([highest_node]),
        median=middle,
        outliers=tuple(
            Outlier(node=names([node]), worst=peaks[node], points=tuple(lines[node]))
            for node in far
        ),
        rest={n: tuple(lines[n]) for n in sorted(lines, key=natural_sort_key) if n not in far},
    )


def _far(peaks: Mapping[str, float], middle: float, kind: Kind) -> list[str]:
    """The nodes that are far from the median on the bad side; nobody is where there are few."""
    if kind.rare:
        return _most((n for n, value in peaks.items() if value >= kind.min_deviation), peaks)
    if len(peaks) < 3:
        return []
    usual = 1.4826 * median(abs(value - middle) for value in peaks.values())
    least = max(FAR * usual, kind.min_deviation)
    away = {n: (middle - v if kind.low_is_bad else v - middle) for n, v in peaks.items()}
    return _most((n for n in peaks if away[n] >= least), away)


def _most(nodes: Iterable[str], away: Mapping[str, float]) -> list[str]:
    return sorted(nodes, key=lambda n: (-away[n], natural_sort_key(n)))[:NAMED]
