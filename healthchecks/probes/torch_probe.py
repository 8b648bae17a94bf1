"""Loads GPUs through torch and prints what it measured: `python torch_probe.py TEST [OPTIONS]`.

Run by the trainer's Python, with the standard library and torch only; superv never imports it.
TEST is gemm, bandwidth or memory. `--device cpu,cpu` runs the same code on processors, to try it.
Prints one line of JSON: {"torch", "devices": [{"index", "name", …}], "pairs": […]}, or
{"refused": WHY} with exit code 3.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

MIB = 1 << 20
# What torch is built for, and where its module `version` has it: torch for ROCm has its devices in
# torch.cuda, under the same names (PyTorch, "HIP (ROCm) semantics").
_BACKENDS = {"cuda": ("CUDA", "cuda"), "rocm": ("ROCm", "hip")}
# Each hides devices, or orders them anew (CUDA Programming Guide; ROCm, "GPU isolation").
_HIDING = (
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
)


class CannotMeasure(Exception):
    """Nothing can be measured; the text says why, and `lacks` what is not installed."""

    def __init__(self, text: str, lacks: str = "") -> None:
        super().__init__(text)
        self.lacks = lacks


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("test", choices=("gemm", "bandwidth", "memory"))
    options.add_argument(
        "--device", default="cuda", help="cuda (all of them), or a list with commas"
    )
    options.add_argument(
        "--backend", choices=tuple(_BACKENDS), default="cuda", help="what torch is to be built for"
    )
    options.add_argument("--seconds", type=float, default=5.0, help="of load, for each measurement")
    options.add_argument("--size", type=int, default=8192, help="of the matrices")
    options.add_argument("--mib", type=int, default=256, help="of a copy, or of a piece of memory")
    options.add_argument("--share", type=float, default=0.9, help="of the free memory to test")
    asked = options.parse_args()
    try:
        torch = _torch()
        devices = _devices(torch, asked.device, asked.backend)
        said, code = {"torch": torch.__version__} | _TESTS[asked.test](torch, devices, asked), 0
    except CannotMeasure as why:
        said, code = {"refused": str(why), "lacks": why.lacks}, 3
    sys.stdout.write(json.dumps(said) + "\n")
    return code


def _torch() -> Any:
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # indices as NVML's
    for name in _HIDING:
        os.environ.pop(name, None)
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise CannotMeasure(f"{sys.executable} has no torch: {error}", "torch") from error


def _devices(torch: Any, asked: str, backend: str) -> list[Any]:
    if asked != "cuda":
        return [torch.device(name) for name in asked.split(",")]
    name, key = _BACKENDS[backend]
    for_what = [said for said, of in _BACKENDS.values() if getattr(torch.version, of, None)]
    if name not in for_what:
        built = f"for {for_what[0]}" if for_what else "for processors alone: no accelerator"
        why = f"torch {torch.__version__} is built {built}; this node's GPUs want one for {name}"
        raise CannotMeasure(why, f"torch for {name}")
    if not torch.cuda.is_available():
        raise CannotMeasure(
            f"torch {torch.__version__}, for {name} {getattr(torch.version, key)}, sees no GPU"
        )
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def _measured(torch: Any, index: int, device: Any, measure: Callable[[], dict[str, Any]]) -> Any:
    """One device's row; an error of its own is part of it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    row = {"index": index, "name": name, "at": _address(torch, device)}
    try:
        return row | measure()
    except (RuntimeError, OSError) as error:  # torch.AcceleratorError and OutOfMemoryError too
        return row | {"error": str(error).partition("\n")[0]}


def _on_each(torch: Any, devices: list[Any], measure: Callable[[Any], dict[str, Any]]) -> list[Any]:
    """On all devices at once, as training loads them: power and heat are part of the test."""
    with ThreadPoolExecutor(len(devices)) as threads:
        rows = [
            threads.submit(_measured, torch, index, device, partial(measure, device))
            for index, device in enumerate(devices)
        ]
        return [row.result() for row in rows]


def _wait(torch: Any, *devices: Any) -> None:
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def gemm(torch: Any, devices: list[Any], asked: Any) -> dict[str, Any]:
    """bf16 matrices of --size, multiplied for --seconds; all products have to be the same."""
    seeded = torch.Generator().manual_seed(102)
    size = (asked.size, asked.size)
    left, right = (torch.randn(size, generator=seeded).to(torch.bfloat16) for _ in range(2))

    def measure(device: Any) -> dict[str, Any]:
        a, b = left.to(device), right.to(device)
        first = torch.mm(a, b)
        again = torch.empty_like(first)
        _wait(torch, device)
        count, wrong, began = 0, 0, time.perf_counter()
        while (took := time.perf_counter() - began) < asked.seconds or not count:
            for _ in range(16):
                torch.mm(a, b, out=again)
            _wait(torch, device)
            count += 16
        wrong += not torch.equal(first, again)
        return {
            "tflops": 2 * asked.size**3 * count / took / 1e12,
            "wrong": wrong,
            "checksum": int(first.view(torch.int16).to(torch.int64).sum()),
        }

    return {"devices": _on_each(torch, devices, measure)}


def bandwidth(torch: Any, devices: list[Any], asked: Any) -> dict[str, Any]:
    """Copies of --mib between host and device, and between all pairs: one at a time."""
    size = asked.mib * MIB

    def measure(device: Any) -> dict[str, Any]:
        with _beside(torch, device):
            pinned = device.type == "cuda"
            there = torch.empty(size, dtype=torch.uint8, device=device)
            sent = torch.arange(size // 8, dtype=torch.int64).view(torch.uint8)
            sent = sent.pin_memory() if pinned else sent
            back = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
            return {
                "h2d_gb_s": _copied(torch, sent, there, asked.seconds),
                "d2h_gb_s": _copied(torch, there, back, asked.seconds),
                "wrong": int(not torch.equal(sent, back)),
            }

    rows = [_measured(torch, i, d, partial(measure, d)) for i, d in enumerate(devices)]
    good = [row["index"] for row in rows if "error" not in row]
    pairs = []
    for a in good:
        for b in good:
            if a != b:
                copy = partial(_pair, torch, devices[a], devices[b], asked)
                pairs.append(_measured(torch, a, devices[a], copy) | {"from": a, "to": b})
    return {"devices": rows, "pairs": pairs}


def _pair(torch: Any, a: Any, b: Any, asked: Any) -> dict[str, Any]:
    sent = torch.arange(asked.mib * MIB // 8, dtype=torch.int64, device=a)
    there = torch.empty_like(sent, device=b)
    speed = _copied(torch, sent, there, asked.seconds)
    direct = a.type != "cuda" or torch.cuda.can_device_access_peer(a, b)
    wrong = int(not torch.equal(sent.cpu(), there.cpu()))
    return {"gb_s": speed, "direct": bool(direct), "wrong": wrong}


def _copied(torch: Any, sent: Any, there: Any, seconds: float) -> float:
    """GB/s of copies for some seconds, after one that does not count."""
    there.copy_(sent, non_blocking=True)
    _wait(torch, sent.device, there.device)
    count, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds or not count:
        for _ in range(8):
            there.copy_(sent, non_blocking=True)
        _wait(torch, sent.device, there.device)
        count += 8
    return float(count * sent.numel() * sent.element_size() / took / 1e9)


class _beside(contextlib.ContextDecorator):
    """Runs on the processors next to a GPU, where the system tells: so its host memory is there."""

    def __init__(self, torch: Any, device: Any) -> None:
        self._cpus = _local_cpus(torch, device)

    def __enter__(self) -> None:
        self._before = os.sched_getaffinity(0)
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, self._cpus & self._before or self._before)

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._before)


def _local_cpus(torch: Any, device: Any) -> set[int]:
    if device.type != "cuda":
        return set()
    at = _address(torch, device)
    try:
        text = Path(f"/sys/bus/pci/devices/{at}.0/local_cpulist").read_text()
        ends = [[int(n) for n in part.split("-")] for part in text.strip().split(",")]
    except (OSError, ValueError):
        return set()
    return {cpu for pair in ends for cpu in range(pair[0], pair[-1] + 1)}


def _address(torch: Any, device: Any) -> str:
    """On the PCI bus, without the function; empty where it has none, or torch does not tell it."""
    if device.type != "cuda":
        return ""
    of = torch.cuda.get_device_properties(device)
    try:
        return f"{of.pci_domain_id:04x}:{of.pci_bus_id:02x}:{of.pci_device_id:02x}"
    except AttributeError:  # an older torch does not tell it
        return ""


def memory(torch: Any, devices: list[Any], asked: Any) -> dict[str, Any]:
    """Fills --share of the free memory with a pattern and its inverse, and reads it again.

    A device without a count of its free memory gets two pieces of --mib.
    """

    def measure(device: Any) -> dict[str, Any]:
        piece = asked.mib * MIB
        pieces = 2
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            pieces = max(1, int(free * asked.share) // piece - 3)  # some to compare with
        pattern = torch.arange(piece // 8, dtype=torch.int64, device=device) * 0x9E3779B97F4A7C1
        held, wrong = [pattern.clone() for _ in range(pieces)], 0
        for flip in (0, -1):
            for number, one in enumerate(held):
                torch.bitwise_xor(pattern, flip ^ number, out=one)
            for number, one in enumerate(held):
                one.bitwise_xor_(flip ^ number)
                wrong += int((one != pattern).sum())
        return {"bytes": pieces * piece, "wrong": wrong}

    return {"devices": _on_each(torch, devices, measure)}


_TESTS = {"gemm": gemm, "bandwidth": bandwidth, "memory": memory}

if __name__ == "__main__":
    sys.exit(main())
