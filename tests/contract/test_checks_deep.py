"""Tests that load GPUs: what they make of the probe's words, and the probe itself on processors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from checks import Case, each_of

from healthchecks.frame.check import Gap, Status
from tests.hardware.nvml import SCRIPT, Worker, build
from tests.hardware.tree import GPUS, Tree
from tests.hardware.tree_amd import BDFS, mi300x, process

OK, WARN, FAIL, UNKNOWN, SKIP = (
    Status.OK,
    Status.WARN,
    Status.FAIL,
    Status.UNKNOWN,
    Status.SKIP,
)
PROBE = Path(__file__).parents[2] / "healthchecks" / "probes" / "torch_probe.py"


def no_gpus(tree: Tree) -> None:
    for bus in GPUS:
        tree.remove(f"sys/bus/pci/devices/0000:{bus}:00.0")
    tree.remove("sys/module/nvidia/version")


def says(*lines: str):
    """NVML answers as the lines say."""
    return lambda tree: tree.write(SCRIPT, "\n".join(lines))


def rows(values: dict[str, Any], **odd: dict[str, Any]) -> list[dict[str, Any]]:
    """Eight equal GPUs but for some, as gpu3={"wrong": 1}."""
    every = [{"index": n, "name": "NVIDIA B200", "wrong": 0, **values} for n in range(8)]
    for name, other in odd.items():
        every[int(name.removeprefix("gpu"))] |= other
    return every


def prints(**said: Any) -> dict[str, str]:
    """A Python whose probe prints this."""
    return {"python3": "some warning of torch\n" + json.dumps({"torch": "2.9.0", **said})}


def ends(text: str, code: int) -> dict[str, str]:
    return {"python3": f"#!/bin/sh\necho '{text}'\nexit {code}\n"}


def case(check: str, name: str, status: Status, seen: str = "", **more: Any) -> Case:
    options = {"python": "python3", **more.pop("options", {})}
    return Case(check=check, name=name, status=status, seen=seen, options=options, **more)


def gemm(**odd: dict[str, Any]) -> dict[str, str]:
    return prints(devices=rows({"tflops": 1500.0, "checksum": 42}, **odd))


def around(check: str, good: dict[str, str]) -> list[Case]:
    """What holds for every test of the probe."""
    first = json.loads(good["python3"].splitlines()[-1])
    lost = {"python3": json.dumps(first | {"devices": first["devices"][:7]})}
    broken = json.loads(json.dumps(first))
    broken["devices"][5] = {"index": 5, "name": "NVIDIA B200", "error": "CUDA error: Xid"}
    wrong = json.loads(json.dumps(first))
    wrong["devices"][2]["wrong"] = 3
    return [
        case(check, "healthy", OK, "8 GPUs", programs=good),
        case(
            check,
            "an error of one GPU",
            FAIL,
            "gpu5: ",
            programs={"python3": json.dumps(broken)},
        ),
        case(check, "wrong", FAIL, "3 wrong", programs={"python3": json.dumps(wrong)}),
        case(check, "torch sees fewer", FAIL, "torch sees 7 GPUs, NVML 8", programs=lost),
        case(check, "no such Python", UNKNOWN, "python3 is not installed"),
        case(
            check,
            "no torch",
            UNKNOWN,
            "python3 has no torch",
            programs=ends('{"refused": "python3 has no torch", "lacks": "torch"}', 3),
            gap=Gap.TOOL,
        ),
        case(
            check,
            "torch without CUDA",
            UNKNOWN,
            "no CUDA; give deep.",
            programs=ends('{"refused": "no CUDA", "lacks": ""}', 3),
        ),
        case(check, "it crashed", UNKNOWN, "python3 ended with 139", programs=ends("", 139)),
        case(check, "no result", UNKNOWN, "printed no result", programs=ends("hello", 0)),
        case(
            check,
            "in use",
            UNKNOWN,
            "gpu2 compute for somebody",
            change=says("nvmlDeviceGetComputeRunningProcesses_v3 2 value 4242 1000000"),
            programs=good,
        ),
        case(check, "no GPU", SKIP, "no NVIDIA GPU", change=no_gpus),
    ]


def pairs(**odd: dict[str, Any]) -> list[dict[str, Any]]:
    """Of eight GPUs; gpu3={"gb_s": 50} changes all pairs that it is part of."""
    found = []
    for a in range(8):
        for b in range(8):
            if a != b:
                pair = {"from": a, "to": b, "gb_s": 700.0, "direct": True, "wrong": 0}
                for name, other in odd.items():
                    if int(name.removeprefix("gpu")) in (a, b):
                        pair |= other
                found.append(pair)
    return found


def copies(between: list[dict[str, Any]], **odd: dict[str, Any]) -> dict[str, str]:
    return prints(devices=rows({"h2d_gb_s": 55.0, "d2h_gb_s": 54.0}, **odd), pairs=between)


GEMM = [
    *around("deep.gemm", gemm()),
    case(
        "deep.gemm",
        "one is slow",
        FAIL,
        "gpu3: gemm 1300 TFLOP/s, 13 % less than the others (1500)",
        programs=gemm(gpu3={"tflops": 1300.0}),
    ),
    case(
        "deep.gemm",
        "one is slower",
        WARN,
        "gpu3: gemm 1400 TFLOP/s, 7 % less than the others",
        programs=gemm(gpu3={"tflops": 1400.0}),
    ),
    case(
        "deep.gemm",
        "all are slower than they were",
        FAIL,
        "gpu0: gemm 1500 TFLOP/s, 17 % less than it was (1800)",
        programs=gemm(),
        memory={
            "lasting": {f"gemm:GPU-0b200000-0000-0000-0000-{n:012d}": 1800.0 for n in range(8)}
        },
    ),
    case(
        "deep.gemm",
        "all are slower than the site wants",
        FAIL,
        "gpu0: gemm 1500 TFLOP/s",
        options={"least_tflops": 1600},
        programs=gemm(),
    ),
    case(
        "deep.gemm",
        "another product",
        FAIL,
        "gpu6: its product differs from the other GPUs'",
        programs=gemm(gpu6={"checksum": 41}),
    ),
]
BANDWIDTH = [
    *around("deep.bandwidth", copies(pairs())),
    case(
        "deep.bandwidth",
        "a narrow slot",
        FAIL,
        "gpu4: h2d 27 GB/s, 51 % less than the others (55)",
        programs=copies(pairs(), gpu4={"h2d_gb_s": 27.0}),
    ),
    case(
        "deep.bandwidth",
        "a GPU whose NVLinks are down",
        FAIL,
        "gpu3: 14 of 56 pairs copy through the host; gpu3: pairs 40 GB/s, 94 % less",
        programs=copies(pairs(gpu3={"gb_s": 40.0, "direct": False})),
    ),
    case(
        "deep.bandwidth",
        "data that changes on its way",
        FAIL,
        "gpu1 to gpu0: data arrives changed",
        programs=copies([p | {"wrong": int((p["from"], p["to"]) == (1, 0))} for p in pairs()]),
    ),
    case(
        "deep.bandwidth",
        "less than the site wants",
        FAIL,
        "pairs 700 GB/s",
        options={"least_pair_gb": 750},
        programs=copies(pairs()),
    ),
]
MEMORY = [*around("deep.memory", prints(devices=rows({"bytes": 170 * 2**30})))]


def dcgm(*results: dict[str, Any], outer: str = "DCGM Diagnostic") -> dict[str, str]:
    tests = [{"name": "memory", "results": [{"status": "Pass", "entity_id": 0}, *results]}]
    document = {outer: {"test_categories": [{"category": "Deployment", "tests": tests}]}}
    return {"dcgmi": "CUDA_VISIBLE_DEVICES is set\n" + json.dumps(document)}


def failed(severity: int | None, **more: Any) -> dict[str, Any]:
    warning = {"warning": "page retirement is pending", "error_id": 6}
    if severity is not None:
        warning["error_severity"] = severity
    return {"status": "Fail", "entity_id": 3, "warnings": [warning], **more}


def diag(name: str, status: Status, seen: str, **more: Any) -> Case:
    return Case(check="dcgm.diag", name=name, status=status, seen=seen, **more)


DCGM = [
    diag("healthy", OK, "1 tests passed", programs=dcgm()),
    diag(
        "isolate",
        FAIL,
        "gpu3: memory: page retirement is pending (isolate)",
        programs=dcgm(failed(2)),
    ),
    diag("reset", FAIL, "(reset)", programs=dcgm(failed(6))),
    diag("triage", WARN, "(triage)", programs=dcgm(failed(4))),
    diag("no severity", FAIL, "gpu3: memory: page", programs=dcgm(failed(None))),
    diag(
        "DCGM 3",
        FAIL,
        "gpu5: memory: bad (isolate)",
        programs=dcgm(
            {"status": "FAIL", "gpu_id": "5", "info": "bad", "error_severity": 2},
            outer="DCGM GPU Diagnostic",
        ),
    ),
    diag(
        "a word of caution",
        WARN,
        "memory: not root (monitor)",
        programs=dcgm(
            {"status": "Warn", "warnings": [{"warning": "not root", "error_severity": 1}]}
        ),
    ),
    diag("no test", UNKNOWN, "dcgmi ran no test", programs={"dcgmi": "{}"}),
    diag(
        "another form",
        UNKNOWN,
        "of another form",
        programs={"dcgmi": '{"a": {"test_categories": [3]}}'},
    ),
    diag(
        "no host engine",
        UNKNOWN,
        "dcgmi ended with 249: Error: unable to connect",
        programs={"dcgmi": "#!/bin/sh\necho 'Error: unable to connect' >&2\nexit 249\n"},
    ),
    diag("not installed", UNKNOWN, "dcgmi is not installed", gap=Gap.TOOL),
    diag("no GPU", SKIP, "no NVIDIA GPU", change=no_gpus),
]


def as_amd(*lines: str):
    """AMD's GPUs in place of NVIDIA's, and no library of NVIDIA's to ask."""

    def change(tree: Tree) -> None:
        mi300x(tree)
        for index in map(int, lines):
            process(tree, 4242, index, 1 << 30)

    return change


def of_rocm(numbers: Sequence[int], **more: Any) -> dict[str, str]:
    """Products of eight MI300X, which torch numbers in an order of its own."""
    found = rows({"tflops": 700.0, "checksum": 42, "name": "AMD Instinct MI300X"})
    for row, number in zip(found, numbers, strict=True):
        row["at"] = BDFS[number].rpartition(".")[0]
    found[0] |= more
    return prints(devices=found)


AMD = [
    case("deep.gemm", "AMD", OK, "8 GPUs: 700", change=as_amd(), programs=of_rocm(range(8))),
    case(
        "deep.gemm",
        "AMD, in another order",
        FAIL,
        "gpu7: gemm 500 TFLOP/s, 29 % less than the others",
        change=as_amd(),
        programs=of_rocm(range(7, -1, -1), tflops=500.0),
    ),
    case(
        "deep.gemm",
        "AMD, slower than it was",
        FAIL,
        "gpu5: gemm 700 TFLOP/s, 30 % less than it was (1000)",
        change=as_amd(),
        programs=of_rocm((5, 0, 1, 2, 3, 4, 6, 7)),
        memory={"lasting": {"gemm:b1a2c3d4e5f60705": 1000.0}},
    ),
    case(
        "deep.gemm",
        "AMD, in use",
        UNKNOWN,
        "gpu1, gpu6 compute for somebody",
        change=as_amd("1", "6"),
        programs=of_rocm(range(8)),
    ),
    case(
        "deep.gemm",
        "AMD, torch sees fewer",
        FAIL,
        "torch sees 7 GPUs, amdgpu 8",
        change=as_amd(),
        programs=prints(devices=rows({"tflops": 700.0, "checksum": 42})[:7]),
    ),
    case(
        "deep.gemm",
        "AMD, each cut into two",
        OK,
        "16 GPUs",
        change=as_amd(),
        programs=prints(
            devices=[
                {"index": n, "name": "MI300X", "wrong": 0, "tflops": 350.0, "checksum": 42,
                 "at": BDFS[n // 2].rpartition(".")[0]}
                for n in range(16)
            ]
        ),
    ),
    case(
        "deep.memory",
        "AMD, torch for CUDA",
        UNKNOWN,
        "want one for ROCm",
        change=as_amd(),
        programs=ends('{"refused": "want one for ROCm", "lacks": "torch for ROCm"}', 3),
        gap=Gap.TOOL,
    ),
]  # fmt: skip

CASES = [*GEMM, *BANDWIDTH, *MEMORY, *AMD, *DCGM]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    library = build(tmp_path_factory.mktemp("nvml"))
    one = Worker(library, Path(__file__), library / "worker.log")
    yield one
    one.close()


@each_of(CASES)
def test_case(case: Case, worker: Worker, tmp_path: Path) -> None:
    said = worker.ask(str(case), tmp_path)
    assert "error" not in said, said["error"]


# -- the probe itself


def probe(python: str, *args: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run([python, PROBE, *args], capture_output=True, text=True, timeout=120)
    assert done.stdout.count("\n") == 1, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_python_without_torch() -> None:
    code, said = probe(sys.executable, "gemm", "--device", "cpu")
    if "torch" in said:
        pytest.skip("this Python has torch")
    assert code == 3 and "has no torch: No module named 'torch'" in said["refused"]


@pytest.mark.titan
@pytest.mark.skipif(
    "SUPERV_TITAN" not in os.environ, reason="SUPERV_TITAN names a Python with torch"
)
@pytest.mark.parametrize("test", ["gemm", "bandwidth", "memory"])
def test_the_probe_on_processors(test: str) -> None:
    small = ("--seconds", "0.02", "--size", "64", "--mib", "1")
    code, said = probe(os.environ["SUPERV_TITAN"], test, "--device", "cpu,cpu", *small)
    assert code == 0 and [row["index"] for row in said["devices"]] == [0, 1]
    assert all(row["wrong"] == 0 and "error" not in row for row in said["devices"])
    if test == "gemm":
        assert len({row["checksum"] for row in said["devices"]}) == 1
        assert all(row["tflops"] > 0 for row in said["devices"])
    if test == "bandwidth":
        assert [(p["from"], p["to"]) for p in said["pairs"]] == [(0, 1), (1, 0)]
        assert all(pair["gb_s"] > 0 and pair["wrong"] == 0 for pair in said["pairs"])
    if test == "memory":
        assert all(row["bytes"] == 2 << 20 for row in said["devices"])


@pytest.mark.titan
@pytest.mark.skipif(
    "SUPERV_TITAN" not in os.environ, reason="SUPERV_TITAN names a Python with torch"
)
def test_the_probe_without_a_gpu_refuses() -> None:
    code, said = probe(os.environ["SUPERV_TITAN"], "gemm")
    built, lacks = ("sees no GPU", "") if "+cu" in said["refused"] else ("processors alone", "CUDA")
    assert code == 3 and built in said["refused"] and lacks in said["lacks"]


BUILDS = [  # what torch is built for, what the node has, what is said
    ({"cuda": None, "hip": None}, "cuda", "processors alone: no accelerator", "torch for CUDA"),
    ({"cuda": None, "hip": None}, "rocm", "processors alone: no accelerator", "torch for ROCm"),
    (
        {"cuda": None, "hip": "6.4.1"},
        "cuda",
        "for ROCm; this node's GPUs want one for CUDA",
        "CUDA",
    ),
    ({"cuda": "12.8", "hip": None}, "rocm", "for CUDA; this node's GPUs want one for ROCm", "ROCm"),
    ({"cuda": "12.8"}, "cuda", "for CUDA 12.8, sees no GPU", ""),
    ({"cuda": None, "hip": "6.4.1"}, "rocm", "for ROCm 6.4.1, sees no GPU", ""),
]


@pytest.mark.parametrize(("built", "backend", "says", "lacks"), BUILDS)
def test_a_torch_of_another_build_is_told_by_what_it_lacks(
    built: dict[str, str | None], backend: str, says: str, lacks: str, tmp_path: Path
) -> None:
    """A stand-in for torch's builds: there are no GPUs here for them to see."""
    (tmp_path / "torch.py").write_text(
        "from types import SimpleNamespace\n"
        "__version__ = '2.9.0'\n"
        f"version = SimpleNamespace(**{built!r})\n"
        "cuda = SimpleNamespace(is_available=lambda: False)\n"
    )
    done = subprocess.run(
        [sys.executable, PROBE, "gemm", f"--backend={backend}"],
        capture_output=True, text=True, timeout=60, env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert (done.returncode, lacks in said["lacks"], bool(said["lacks"])) == (3, True, bool(lacks))
    assert says in said["refused"]
