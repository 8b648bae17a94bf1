"""Tests that load idle GPUs: arithmetic, copies, memory. Run by a Python that has torch.

NVIDIA's through a torch for CUDA, AMD's through one for ROCm, which calls its devices `cuda` too.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

from healthchecks.accelerators.makers import WATCHED
from healthchecks.accelerators.port import Accelerator
from healthchecks.frame.check import Findings, NoTool, Result, Skip, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources import nvml
from healthchecks.sources.nvml import open_nvml
from supervisor.core.setting import About

Python = Annotated[str, About(doc="A Python with torch: the trainer's. Empty: superv's own.")]
Warn = Annotated[float, About(doc="Slower than the others, or than before: WARN.", unit="%")]
Fail = Annotated[float, About(doc="Slower than the others, or than before: FAIL.", unit="%")]
_PROBE = Path(__file__).absolute().parents[1] / "probes" / "torch_probe.py"
_WRONG_FIX = "exclude the node; run `dcgmi diag -r 3`; have the GPU replaced where it fails again"
_SLOW_FIX = (
    "look at its clocks, temperature and power limit (superv check gpu) and its PCIe link, run the "
    "test again; exclude the node if it stays"
)


def _load_check(
    name: str, *, deadline_s: float
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """A check that loads all GPUs: never beside another."""
    return check(
        name,
        tags={"deep"},
        resource="gpu-load",
        deadline_s=deadline_s,
        timeout_fix="look for Xids in the kernel log; where processes can't be killed, reboot the "
        "node",
        untested="no GPU, and no torch for ROCm: the probe was run on processors only",
    )


class Device(Protocol):
    """What is loaded, whoever made it."""

    @property
    def index(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def bdf(self) -> str: ...


Devices = Mapping[int, Device]


def _idle(ctx: Ctx) -> tuple[Devices, str]:
    """The node's GPUs by index, and who counts them. Raises Skip without one, Unknown."""
    try:
        driver = open_nvml(ctx)
    except Skip as none:
        return _of_others(ctx, none)
    try:
        busy = [gpu.label for gpu in driver.gpus if driver.in_use(gpu)]
    except nvml.NvmlCallError as error:
        raise Unknown(f"whether the GPUs are idle is not known: {error}") from error
    _none_of(busy)
    return {gpu.index: gpu for gpu in driver.gpus}, "NVML"


def _of_others(ctx: Ctx, none: Skip) -> tuple[Devices, str]:
    for maker in WATCHED:
        if devices := {one.index: one for one in maker.devices(ctx)}:
            _none_of(sorted({devices[p.index].label for p in maker.processes(ctx)}))
            return devices, maker.driver
    raise none


def _none_of(busy: Sequence[str]) -> None:
    if busy:
        raise Unknown(f"{', '.join(busy)} compute for somebody: only idle GPUs are loaded")


def _probe(
    ctx: Ctx, python: str, test: str, deadline_s: float, *args: str
) -> tuple[Devices, dict[str, Any]]:
    """The GPUs by index, and what the probe printed. Raises Skip without a GPU, Unknown."""
    gpus, counted_by = _idle(ctx)
    ctx.announce("")
    backend = "cuda" if counted_by == "NVML" else "rocm"
    argv = (python or sys.executable, str(_PROBE), test, f"--backend={backend}", *args)
    done = ctx.command(*argv, deadline_s=deadline_s)
    ctx.announce("")
    try:
        said = json.loads(done.out.strip().splitlines()[-1])
        said["refused" if done.rc == 3 else "devices"]
    except (IndexError, ValueError, KeyError, TypeError):
        raise Unknown(done.why() if done.rc else "the probe printed no result") from None
    if done.rc == 3 and said.get("lacks"):
        raise NoTool(
            str(said["refused"]),
            f"give deep.{test}.python the trainer's",
            "the GPUs were not loaded: one that is slow or wrong, or a NIC at half speed, shows "
            "nowhere else",
        )
    if done.rc == 3:
        raise Unknown(f"{said['refused']}; give deep.{test}.python the trainer's")
    said = _placed(gpus, said) | {"counted_by": counted_by}
    count = len(said["devices"])
    if counted_by != "NVML" and count > len(gpus):  # cut into several: by torch's numbers
        parts = (Accelerator(index=n, bdf=f"torch:{n}", model="") for n in range(count))
        return {part.index: part for part in parts}, said
    return gpus, said


def _placed(gpus: Devices, said: dict[str, Any]) -> dict[str, Any]:
    """The probe's rows under the node's own indices, where torch tells the PCI addresses.

    ROCm's order is its own; CUDA's was asked to be the bus's. Where a device is cut into several,
    one address has many, and torch's numbers stay.
    """
    at = {gpu.bdf.rpartition(".")[0]: gpu.index for gpu in gpus.values()}
    ours = {row["index"]: at.get(row.get("at", "")) for row in said["devices"]}
    if None in ours.values() or len({*ours.values()}) < len(ours):
        return said
    rows = [row | {"index": ours[row["index"]]} for row in said["devices"]]
    pairs = [p | {end: ours[p[end]] for end in ("from", "to")} for p in said.get("pairs", ())]
    return said | {"devices": sorted(rows, key=lambda row: row["index"]), "pairs": pairs}


def _sound(found: Findings, rows: Sequence[Mapping[str, Any]], what: str) -> list[Any]:
    """The devices that gave a result; those that failed or were wrong become findings."""
    sound = []
    for row in rows:
        label = f"gpu{row['index']}"
        if "error" in row:
            found.fail(f"{what}: {row['error']}", expected="a result", fix=_WRONG_FIX, device=label)
        elif row["wrong"]:
            found.fail(
                f"{what}: {row['wrong']} wrong", expected="none", fix=_WRONG_FIX, device=label
            )
        else:
            sound.append(row)
    return sound


def _count(found: Findings, gpus: Devices, said: Mapping[str, Any]) -> None:
    count, by = len(said["devices"]), said["counted_by"]
    if count != len(gpus):
        found.fail(
            f"torch sees {count} GPUs, {by} {len(gpus)}",
            expected="the same",
            fix="see gpu.handle, accel.on_bus and nccl.devices; in a Slurm step, ask for all GPUs",
        )


class _Speeds:
    """Judges equal things against each other, and each against its own best."""

    def __init__(
        self, ctx: Ctx, found: Findings, unit: str, warn_percent: float, fail_percent: float
    ) -> None:
        self._ctx, self._found, self._unit = ctx, found, unit
        self._warn, self._fail = warn_percent, fail_percent

    def judge(self, what: str, values: Mapping[str, tuple[str, float]], least: float = 0.0) -> None:
        """`values` by device: what it is remembered by, and its speed."""
        if not values:
            return
        usual = _median([value for _, value in values.values()])
        for device, (key, value) in values.items():
            place = f"{what}:{key}"
            best = max(value, self._ctx.memory.get(place) or 0.0)
            self._ctx.memory.put(place, best, lasting=True)
            self._found.metric(f"{device}.{what}", value, self._unit)
            for other, than in ((usual, "the others"), (best, "it was")):
                self._below(what, device, value, other, than)
            if value < least:
                self._found.fail(
                    f"{what} {value:.4g} {self._unit}",
                    expected=f"at least {least:.4g} {self._unit}",
                    fix=_SLOW_FIX,
                    device=device,
                )

    def _below(self, what: str, device: str, value: float, other: float, than: str) -> None:
        percent = 100.0 * (1 - value / other) if other else 0.0
        if percent < self._warn:
            return
        (self._found.fail if percent >= self._fail else self._found.warn)(
            f"{what} {value:.4g} {self._unit}, {percent:.0f} % less than {than} ({other:.4g})",
            expected=f"within {self._warn:g} %",
            fix=_SLOW_FIX,
            device=device,
        )


def _median(values: Sequence[float]) -> float:
    ranked = sorted(values)
    return (ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]) / 2


def _keyed(gpus: Devices, rows: Sequence[Any], name: str) -> dict[str, Any]:
    """Values of a column, by device, with what the device is remembered by."""
    return {
        f"gpu{row['index']}": (gpus[row["index"]].key, float(row[name]))
        for row in rows
        if row["index"] in gpus
    }


@_load_check("deep.gemm", deadline_s=180.0)
def deep_gemm(
    ctx: Ctx,
    *,
    python: Python = "",
    seconds: Annotated[float, About(doc="Of load.", unit="s", ge=0)] = 20.0,
    size: Annotated[int, About(doc="Of the matrices.", ge=16)] = 8192,
    warn_percent: Warn = 5.0,
    fail_percent: Fail = 10.0,
    least_tflops: Annotated[float, About(doc="Of each GPU.", unit="TFLOP/s", ge=0)] = 0.0,
) -> Result:
    """All GPUs multiply bf16 matrices at once: alike in speed, and with the same result.

    A GPU that is slower than its neighbours under load is throttled or damaged (a fail-slow: 7 of
    17 failures of a published 63-node B200 cluster had no Xid, arXiv:2605.09370); one whose product
    differs computes wrongly without an error. 5 % and 10 % are proposals.
    """
    gpus, said = _probe(ctx, python, "gemm", 150.0, f"--seconds={seconds:g}", f"--size={size}")
    found = Findings()
    _count(found, gpus, said)
    rows = _sound(found, said["devices"], "products")
    results = Counter(row["checksum"] for row in rows if row["name"] == rows[0]["name"])
    if len(results) > 1:
        usual = results.most_common(1)[0][0]
        for row in rows:
            if row["checksum"] != usual and row["name"] == rows[0]["name"]:
                found.fail(
                    "its product differs from the other GPUs'",
                    expected="the same bits",
                    fix=_WRONG_FIX,
                    device=f"gpu{row['index']}",
                )
    values = _keyed(gpus, rows, "tflops")
    _Speeds(ctx, found, "TFLOP/s", warn_percent, fail_percent).judge("gemm", values, least_tflops)
    return found.result(_range(values, "TFLOP/s"))


def _range(values: Mapping[str, tuple[str, float]], unit: str) -> str:
    speeds = [value for _, value in values.values()]
    return (
        f"{len(speeds)} GPUs: {min(speeds, default=0):.4g} to {max(speeds, default=0):.4g} {unit}"
    )


@_load_check("deep.bandwidth", deadline_s=240.0)
def deep_bandwidth(
    ctx: Ctx,
    *,
    python: Python = "",
    seconds: Annotated[float, About(doc="Of each measurement.", unit="s", ge=0)] = 0.5,
    mib: Annotated[int, About(doc="Of a copy.", unit="MiB", ge=1)] = 256,
    warn_percent: Warn = 10.0,
    fail_percent: Fail = 20.0,
    least_pair_gb: Annotated[float, About(doc="From one GPU to another.", unit="GB/s", ge=0)] = 0.0,
) -> Result:
    """Copies between host and GPUs and between all pairs of GPUs are alike in speed, and right.

    Shows a link of fewer lanes, a GPU whose NVLinks are down (its pairs go through the host), and
    data that arrives changed. 10 % and 20 % are proposals.
    """
    gpus, said = _probe(ctx, python, "bandwidth", 200.0, f"--seconds={seconds:g}", f"--mib={mib}")
    found = Findings()
    _count(found, gpus, said)
    rows = _sound(found, said["devices"], "copies")
    speeds = _Speeds(ctx, found, "GB/s", warn_percent, fail_percent)
    for name in ("h2d_gb_s", "d2h_gb_s"):
        speeds.judge(name.removesuffix("_gb_s"), _keyed(gpus, rows, name))
    pairs = said["pairs"]
    text = ""
    if pairs:
        text = _pairs(found, speeds, gpus, pairs, least_pair_gb)
    return found.result(f"{len(rows)} GPUs{text}")


def _pairs(
    found: Findings,
    speeds: _Speeds,
    gpus: Devices,
    pairs: Sequence[Mapping[str, Any]],
    least: float,
) -> str:
    """A GPU is judged by the median of its pairs: a slow one slows one pair of each other."""
    right = []
    for pair in pairs:
        ends = f"gpu{pair['from']} to gpu{pair['to']}"
        if "error" in pair:
            found.fail(f"{ends}: {pair['error']}", expected="a copy", fix=_WRONG_FIX)
        elif pair["wrong"]:
            found.fail(f"{ends}: data arrives changed", expected="the same", fix=_WRONG_FIX)
        else:
            right.append(pair)
    indirect = [p for p in right if not p["direct"]]
    if indirect and len(indirect) < len(right):
        common = Counter(x for p in indirect for x in (p["from"], p["to"])).most_common(1)[0][0]
        found.fail(
            f"{len(indirect)} of {len(right)} pairs copy through the host",
            expected="all of them direct",
            fix="see nvlink.links and fabric.state",
            device=f"gpu{common}",
        )
    of: dict[int, list[float]] = {}
    for pair in right:
        for end in (pair["from"], pair["to"]):
            of.setdefault(end, []).append(pair["gb_s"])
    values = {f"gpu{i}": (gpus[i].key, _median(v)) for i, v in sorted(of.items()) if i in gpus}
    speeds.judge("pairs", values, least)
    return f", {len(right)} pairs: {_range(values, 'GB/s').partition(': ')[2]}"


@_load_check("deep.memory", deadline_s=300.0)
def deep_memory(
    ctx: Ctx,
    *,
    python: Python = "",
    share: Annotated[float, About(doc="Of the free memory.", ge=0, le=1)] = 0.9,
) -> Result:
    """GPU memory keeps what was written into it: a pattern and its inverse, in nearly all of it.

    Finds what ECC missed, and lets ECC find and remap what it can before a job meets it: look at
    ecc.* and remap.* afterwards.
    """
    gpus, said = _probe(ctx, python, "memory", 270.0, f"--share={share:g}")
    found = Findings()
    _count(found, gpus, said)
    rows = _sound(found, said["devices"], "words")
    tested = sum(row["bytes"] for row in rows)
    found.metric("tested", tested, "B")
    return found.result(f"{len(rows)} GPUs, {tested / 2**30:.1f} GiB written and read")
