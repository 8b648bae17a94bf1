"""A fleet record as weeks of sweeps leave it: reports of nodes with eight GPUs, and defects.

Made by hand, so that it costs no look at anything: names, texts, units and metrics are those that
the real checks give.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence

from healthchecks.frame.check import Metric, Result, Status
from healthchecks.frame.report import Finding, Report
from supervisor.fleet.record import Fleet

NOW = 1_790_000_000.0
HOUR_S = 3600.0
FINE = (
    *("node.answers", "host.boot", "services", "gpu.count", "gpu.handle", "persistence", "mig"),
    *("versions", "fabric.state", "nvlink.links", "ecc.mode", "ecc.unc_volatile", "remap.pending"),
    *("remap.failed", "pcie.link", "ib.port", "ib.counters", "roce.gid", "nfs.mounted", "nvme"),
    *("cpu.layout", "numa.devices", "mem.size", "kernel", "clock", "nccl.limits", "cuda.libs"),
)
GPUS = range(8)

Change = Callable[[dict[str, Finding], float], None]  # what a defect does to a report


def node_name(number: int) -> str:
    return f"node-{number:03}"


def report(number: int, at: float, changes: Iterable[Change] = ()) -> Report:
    """What a healthy node says at that time, with changes."""
    chance = random.Random(f"{number} {at}")
    found = {name: finding(name, seen=f"{name} is as it should be") for name in FINE}
    warm = 4 * math.sin(at / HOUR_S / 24 * 2 * math.pi) + number % 5
    found["thermal"] = finding(
        "thermal",
        seen="at least 30 °C below",
        metrics={
            f"gpu{gpu}.{what}": Metric(
                value=round(base + sign * (warm + chance.random() * 3)), unit="°C"
            )
            for gpu in GPUS
            for what, base, sign in (("temperature", 48, 1), ("memory", 58, 1), ("margin", 38, -1))
        },
    )
    found["remap.unc"] = finding(
        "remap.unc",
        metrics={
            f"gpu{g}.{w}": Metric(value=0) for g in GPUS for w in ("corrected", "uncorrected")
        },
    )
    found["nvlink.errors"] = finding(
        "nvlink.errors", metrics={f"gpu{g}.replay_errors": Metric(value=0) for g in GPUS}
    )
    found["nfs.alive[/shared]"] = finding(
        "nfs.alive",
        on="/shared",
        metrics={"stat": Metric(value=0.002 + 0.003 * chance.random(), unit="s")},
    )
    found["fs.local[/]"] = finding(
        "fs.local",
        on="/",
        metrics={"space_used": Metric(value=40 + number / 10, unit="%")},
    )
    found["ipmi.sel"] = finding("ipmi.sel", Status.SKIP, seen="no ipmitool here")
    for change in changes:
        change(found, at)
    return Report(
        node=node_name(number), at=at, findings=tuple(found.values()), tags=("preflight",)
    )


def finding(
    check: str, status: Status = Status.OK, *, on: str = "", seen: str = "", **more: object
) -> Finding:
    return Finding(check=check, on=on, result=Result(status=status, seen=seen, **more))


def says(name: str, status: Status, seen: str, *, after: float = 0.0, **more: object) -> Change:
    """A check that says something else, from a time on."""

    def change(found: dict[str, Finding], at: float) -> None:
        if at >= after:
            old = found[name]
            found[name] = Finding(
                check=old.check,
                on=old.on,
                result=Result(status=status, seen=seen, metrics=old.result.metrics, **more),
            )

    return change


def measures(name: str, metric: str, value: Callable[[float], float], unit: str = "") -> Change:
    """A check that measures something else."""

    def change(found: dict[str, Finding], at: float) -> None:
        old = found[name]
        metrics = {**old.result.metrics, metric: Metric(value=value(at), unit=unit)}
        result = Result(status=old.status, seen=old.result.seen, metrics=metrics)
        found[name] = Finding(check=old.check, on=old.on, result=result)

    return change


DEFECTS: dict[int, Sequence[Change]] = {
    7: [
        says(
            "gpu.handle",
            Status.FAIL,
            "gpu3: GPU is lost (NVML 15, 0000:1b:00.0)",
            after=NOW - 7 * HOUR_S,
            expected="8 GPUs answer",
            fix="drain the node and power-cycle it",
            devices=("gpu3",),
        )
    ],
    12: [
        says(
            "ib.port",
            Status.FAIL,
            "mlx5_2: 200 Gb/s",
            expected="400 Gb/s",
            fix="reseat or replace the cable of mlx5_2",
            devices=("mlx5_2",),
        )
    ],
    17: [
        measures("remap.unc", "gpu5.corrected", lambda at: round((at - NOW) / HOUR_S / 3 + 254)),
        says("remap.unc", Status.WARN, "gpu5: 254 rows remapped", after=NOW - 2 * HOUR_S),
    ],
    23: [
        measures("thermal", "gpu6.temperature", lambda _: 86, "°C"),
        measures("thermal", "gpu6.margin", lambda _: 2, "°C"),
        says(
            "thermal",
            Status.WARN,
            "gpu6: 2 °C below its slowdown temperature",
            expected="more than 5 °C",
            fix="look at the node's cooling",
        ),
    ],
    31: [says("kernel", Status.UNKNOWN, "/dev/kmsg: Permission denied", fix="run it as root")],
}
NFS_DOWN = says(
    "nfs.alive[/shared]",
    Status.FAIL,
    "/shared: no answer within 5 s",
    expected="an answer within 5 s",
    fix="look at the server 10.0.0.5",
    shared="nfs server 10.0.0.5",
)


def weeks(
    fleet: Fleet,
    *,
    nodes: int = 63,
    hours: int = 6,
    defects: dict[int, Sequence[Change]] = DEFECTS,
) -> None:
    """Hourly sweeps until NOW. Half an hour ago the NFS server hung for those of number over 40."""
    for hour in range(hours - 1, -1, -1):
        at = NOW - hour * HOUR_S
        reports = []
        for number in range(1, nodes + 1):
            changes = list(defects.get(number, ()))
            if hour == 0 and number > 40:
                changes.append(NFS_DOWN)
            reports.append(report(number, at, changes))
        fleet.record(reports, "sweep")
