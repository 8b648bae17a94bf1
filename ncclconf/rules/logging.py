"""What is logged and recorded, so that a failure can be explained."""

from __future__ import annotations

from collections.abc import Iterator

from ncclconf.environment import EnvSetting
from ncclconf.lint import Hit, Severity, Subject, example, rule

TORCH_NAMES = {
    f"NCCL_{n}": f"TORCH_NCCL_{n}"
    for n in ("ASYNC_ERROR_HANDLING", "BLOCKING_WAIT", "DESYNC_DEBUG", "ENABLE_TIMING")
} | {"NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK": "TORCH_NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK"}
RECORDER = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
RECORDED = {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}


@rule(
    "debug-unset",
    Severity.WARNING,
    why="without NCCL_DEBUG not even warnings are written: a failure leaves no line of NCCL's",
    fix="NCCL_DEBUG=WARN",
    source="NCCL user guide, NCCL_DEBUG",
    wrong=[example(), example(NCCL_DEBUG="VERSION")],
    right=[example(NCCL_DEBUG="WARN"), example(NCCL_DEBUG="info")],
)
def debug_unset(s: Subject) -> Iterator[Hit]:
    setting = s.setting("NCCL_DEBUG")
    if setting is None or (setting.known and setting.text.upper() in ("", "VERSION", "NONE")):
        shown = f"NCCL_DEBUG={setting.text}" if setting else "NCCL_DEBUG is not set"
        yield Hit(names=("NCCL_DEBUG",), seen=shown)


@rule(
    "debug-trace",
    Severity.WARNING,
    why="TRACE writes lines for every operation, on every rank",
    fix="NCCL_DEBUG=WARN, INFO while a fault is looked for",
    source="NCCL user guide, NCCL_DEBUG",
    wrong=[example(NCCL_DEBUG="TRACE")],
    right=[example(NCCL_DEBUG="INFO")],
)
def debug_trace(s: Subject) -> Iterator[Hit]:
    if (s.text("NCCL_DEBUG") or "").upper() == "TRACE":
        yield Hit(names=("NCCL_DEBUG",), seen="NCCL_DEBUG=TRACE")


@rule(
    "debug-unknown",
    Severity.ERROR,
    why="a level that NCCL does not know is no level",
    fix="VERSION, WARN, INFO, ABORT or TRACE",
    source="NVIDIA/nccl src/debug.cc",
    wrong=[example(NCCL_DEBUG="DEBUG"), example(NCCL_DEBUG="1")],
    right=[example(NCCL_DEBUG="warn")],
)
def debug_unknown(s: Subject) -> Iterator[Hit]:
    text = s.text("NCCL_DEBUG") or ""
    if text and text.upper() not in ("VERSION", "WARN", "INFO", "ABORT", "TRACE", "NONE", "ATTN"):
        yield Hit(names=("NCCL_DEBUG",), seen=f"NCCL_DEBUG={text}")


@rule(
    "subsystems-without-info",
    Severity.WARNING,
    why="subsystems choose among INFO lines, of which there are none",
    fix="NCCL_DEBUG=INFO with it, or remove it",
    source="NCCL user guide, NCCL_DEBUG_SUBSYS",
    wrong=[
        example(NCCL_DEBUG_SUBSYS="NET"),
        example(NCCL_DEBUG="WARN", NCCL_DEBUG_SUBSYS="NET"),
    ],
    right=[example(NCCL_DEBUG="INFO", NCCL_DEBUG_SUBSYS="NET")],
)
def subsystems_without_info(s: Subject) -> Iterator[Hit]:
    setting = s.setting("NCCL_DEBUG")
    level = (s.text("NCCL_DEBUG") or "").upper()
    quiet = level not in ("INFO", "TRACE") and (setting is None or setting.known)
    if s.setting("NCCL_DEBUG_SUBSYS") and quiet:
        yield Hit(names=("NCCL_DEBUG_SUBSYS",), seen=f"NCCL_DEBUG={level or 'unset'}")


@rule(
    "debug-file-shared",
    Severity.ERROR,
    why="every rank opens it afresh: they cut off each other's lines",
    fix="put %h and %p into the name: nccl.%h.%p.log",
    source="NCCL user guide, NCCL_DEBUG_FILE; src/debug.cc (mode w)",
    wrong=[
        example(NCCL_DEBUG_FILE="/local/nccl.log"),
        example(NCCL_DEBUG_FILE="/shared/nccl.%h.log"),
        example(NCCL_DEBUG_FILE="~/nccl.%h.%p"),
    ],
    right=[
        example(NCCL_DEBUG_FILE="/local/nccl.%h.%p.log"),
        example(NCCL_DEBUG_FILE="/dev/stderr"),
    ],
)
def debug_file_shared(s: Subject) -> Iterator[Hit]:
    text = s.text("NCCL_DEBUG_FILE") or ""
    if text.startswith("~"):
        yield Hit(names=("NCCL_DEBUG_FILE",), seen=f"{text}: ~ is not expanded")
    elif text and not text.startswith("/dev/") and "%p" not in text:
        yield Hit(names=("NCCL_DEBUG_FILE",), seen=f"{text} has no %p")


@rule(
    "torch-names",
    Severity.WARNING,
    why="torch reads the name with TORCH_ before; the older one only warns",
    fix="use the TORCH_ name",
    source="torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp",
    wrong=[example(NCCL_ASYNC_ERROR_HANDLING="1"), example(NCCL_BLOCKING_WAIT="1")],
    right=[example(TORCH_NCCL_ASYNC_ERROR_HANDLING="3")],
)
def torch_names(s: Subject) -> Iterator[Hit]:
    for name in s.set_names():
        if name in TORCH_NAMES:
            yield Hit(names=(name,), seen=name, fix=TORCH_NAMES[name])


@rule(
    "blocking-wait",
    Severity.WARNING,
    why="torch then starts no watchdog: a hang is never reported, and no record is written",
    fix="remove it",
    source="torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp",
    wrong=[example(TORCH_NCCL_BLOCKING_WAIT="1")],
    right=[example(TORCH_NCCL_BLOCKING_WAIT="0")],
)
def blocking_wait(s: Subject) -> Iterator[Hit]:
    if s.text("TORCH_NCCL_BLOCKING_WAIT") == "1":
        yield Hit(names=("TORCH_NCCL_BLOCKING_WAIT",), seen="TORCH_NCCL_BLOCKING_WAIT=1")


@rule(
    "no-flight-recorder",
    Severity.WARNING,
    why="a hang then leaves no record of who was in which collective",
    fix="TORCH_FR_BUFFER_SIZE=2000 (torch before 2.13: TORCH_NCCL_TRACE_BUFFER_SIZE) and "
    "TORCH_NCCL_DUMP_ON_TIMEOUT=1",
    source="torch, Flight Recorder tutorial; ProcessGroupNCCL.cpp",
    wrong=[
        example({"nodes": 2, "gpus": "NVIDIA B200"}),
        example({"nodes": 2, "gpus": "NVIDIA B200"}, TORCH_FR_BUFFER_SIZE="0"),
        example({"nodes": 2, "gpus": "NVIDIA B200"}, TORCH_FR_BUFFER_SIZE="2000"),
    ],
    right=[
        example({"nodes": 2, "gpus": "NVIDIA B200"}, **RECORDED),
        example({"nodes": 1, "gpus": "NVIDIA B200"}),
        example({"nodes": 2, "gpus": ""}),
    ],
)
def no_flight_recorder(s: Subject) -> Iterator[Hit]:
    if not s.facts.gpus or (s.facts.nodes or 1) < 2:
        return
    sizes = [setting for name in RECORDER if (setting := s.setting(name))]
    if not any(_on(setting) for setting in sizes):
        shown = sizes[0] if sizes else None
        seen = f"{shown.name}={shown.text}" if shown else "the flight recorder's size is not set"
        yield Hit(names=(RECORDER[0],), seen=seen)
    elif not (dumps := s.setting("TORCH_NCCL_DUMP_ON_TIMEOUT")) or not _on(dumps):
        seen = "nothing is written at a timeout"
        yield Hit(names=("TORCH_NCCL_DUMP_ON_TIMEOUT",), seen=seen)


def _on(setting: EnvSetting) -> bool:
    return not setting.known or setting.text.lower() not in ("", "0", "false")


@rule(
    "recorder-cut-short",
    Severity.WARNING,
    why="1 aborts before the record is written",
    fix="TORCH_NCCL_ASYNC_ERROR_HANDLING=3, torch's own default",
    source="pytorch/pytorch#121055; ProcessGroupNCCL.hpp",
    wrong=[example(TORCH_NCCL_ASYNC_ERROR_HANDLING="1", **RECORDED)],
    right=[
        example(TORCH_NCCL_ASYNC_ERROR_HANDLING="3", **RECORDED),
        example(TORCH_NCCL_ASYNC_ERROR_HANDLING="1"),
    ],
)
def recorder_cut_short(s: Subject) -> Iterator[Hit]:
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    if s.text(name) == "1" and s.text("TORCH_NCCL_DUMP_ON_TIMEOUT") in ("1", "true"):
        yield Hit(names=(name,), seen=f"{name}=1 with TORCH_NCCL_DUMP_ON_TIMEOUT")


@rule(
    "recorder-path-shared",
    Severity.ADVICE,
    why="the default path is one for all jobs: the next one overwrites the record",
    fix="TORCH_FR_DUMP_TEMP_FILE=/local/JOB/rank_",
    source="torch/csrc/distributed/c10d/FlightRecorder.cpp",
    wrong=[example(**RECORDED)],
    right=[example(TORCH_FR_DUMP_TEMP_FILE="/local/fr/r_", **RECORDED), example()],
)
def recorder_path_shared(s: Subject) -> Iterator[Hit]:
    paths = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
    on = any((setting := s.setting(name)) and _on(setting) for name in RECORDER)
    if on and not any(s.setting(name) for name in paths):
        yield Hit(names=(paths[0],), seen="the flight recorder's path is not set")


@rule(
    "serialised-launches",
    Severity.WARNING,
    why="every kernel is waited for: for debugging only, and collectives may wait for each other",
    fix="remove it",
    source="CUDA programming guide, CUDA_LAUNCH_BLOCKING",
    wrong=[example(CUDA_LAUNCH_BLOCKING="1")],
    right=[example(CUDA_LAUNCH_BLOCKING="0")],
)
def serialised_launches(s: Subject) -> Iterator[Hit]:
    if s.text("CUDA_LAUNCH_BLOCKING") == "1":
        yield Hit(names=("CUDA_LAUNCH_BLOCKING",), seen="CUDA_LAUNCH_BLOCKING=1")


@rule(
    "distributed-detail",
    Severity.WARNING,
    why="DETAIL compares every collective over all ranks first",
    fix="remove it once the fault is found",
    source="torch.distributed, Debugging",
    wrong=[example(TORCH_DISTRIBUTED_DEBUG="DETAIL")],
    right=[example(TORCH_DISTRIBUTED_DEBUG="INFO")],
)
def distributed_detail(s: Subject) -> Iterator[Hit]:
    if (s.text("TORCH_DISTRIBUTED_DEBUG") or "").upper() == "DETAIL":
        yield Hit(names=("TORCH_DISTRIBUTED_DEBUG",), seen="TORCH_DISTRIBUTED_DEBUG=DETAIL")
