"""What an agent finds out about its node, from file trees as kernels really lay them out."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

import pytest

from supervisor.agent.node import address_towards, free_port, problems

MB = 1 << 20
UNLIMITED_V1 = 9223372036854771712  # what cgroup v1 says for "no limit"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node without limits, GPUs or InfiniBand."""
    put(tmp_path, "proc/self/cgroup", "0::/system.slice/job_7/step_0\n")
    return tmp_path


def put(root: Path, path: str, text: str = "") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def found(root: Path, **env: str) -> tuple[str, ...]:
    return problems(env, root)[0]


def test_nothing_to_find_fault_with(root: Path) -> None:
    seen, facts = problems({"SLURM_CPUS_ON_NODE": str(len(os.sched_getaffinity(0)))}, root)
    assert seen == ()
    assert facts["cpus"] == str(len(os.sched_getaffinity(0)))
    assert (facts["memory_limit_mb"], facts["gpus"]) == ("none", "0")
    assert int(facts["nofile"]) > 0 and facts["memlock"]


def test_this_very_machine_can_be_looked_at() -> None:
    seen, facts = problems({})
    assert seen == () or all("\n" not in line for line in seen)
    assert int(facts["cpus"]) >= 1


# --- processors -------------------------------------------------------------------------------


def test_fewer_cpus_than_granted(root: Path) -> None:
    """The agent's step is bound: a real affinity of one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert found(root, SLURM_CPUS_ON_NODE="120") == (
            "may use 1 CPUs, Slurm granted 120: the agent step is bound",
        )
        assert found(root, SLURM_CPUS_ON_NODE="1") == ()
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("text", ["", "64(x2)", "many"])
def test_what_slurm_says_in_other_words_is_not_guessed(root: Path, text: str) -> None:
    assert found(root, SLURM_CPUS_ON_NODE=text, SLURM_MEM_PER_NODE=text) == ()


# --- memory -----------------------------------------------------------------------------------


def test_a_memory_limit_of_cgroup_v2(root: Path) -> None:
    put(root, "sys/fs/cgroup/system.slice/job_7/memory.max", f"{1000 * MB}\n")
    put(root, "sys/fs/cgroup/system.slice/job_7/step_0/memory.max", "max\n")
    assert found(root, SLURM_MEM_PER_NODE="2000000") == (
        "memory is limited to 1000 MB, Slurm granted 2000000 MB",
    )
    assert found(root, SLURM_MEM_PER_NODE="1100") == ()  # within a tenth: rounding, reserves
    assert found(root) == ()  # nothing to compare it with
    assert problems({}, root)[1]["memory_limit_mb"] == "1000"


def test_the_tightest_limit_on_the_way_up_counts(root: Path) -> None:
    put(root, "sys/fs/cgroup/memory.max", f"{900 * MB}\n")
    put(root, "sys/fs/cgroup/system.slice/memory.max", f"{500 * MB}\n")
    put(root, "sys/fs/cgroup/system.slice/job_7/step_0/memory.max", f"{700 * MB}\n")
    assert problems({}, root)[1]["memory_limit_mb"] == "500"


def test_a_memory_limit_of_cgroup_v1(root: Path) -> None:
    lines = ["12:memory:/slurm/uid_0/job_7", "11:cpuset:/slurm", "1:name=systemd:/x", "0::/x"]
    put(root, "proc/self/cgroup", "\n".join(lines) + "\n")
    at = "sys/fs/cgroup/memory/slurm/uid_0"
    put(root, f"{at}/job_7/memory.limit_in_bytes", f"{UNLIMITED_V1}\n")
    put(root, f"{at}/memory.limit_in_bytes", f"{64 * MB}\n")
    put(root, "sys/fs/cgroup/cpuset/slurm/memory.limit_in_bytes", f"{1 * MB}\n")  # another's
    assert found(root, SLURM_MEM_PER_NODE="2000") == (
        "memory is limited to 64 MB, Slurm granted 2000 MB",
    )


def test_no_limit_in_cgroup_v1(root: Path) -> None:
    put(root, "proc/self/cgroup", "4:memory:/a\n")
    put(root, "sys/fs/cgroup/memory/a/memory.limit_in_bytes", f"{UNLIMITED_V1}\n")
    assert problems({"SLURM_MEM_PER_NODE": "2000"}, root)[1]["memory_limit_mb"] == "none"
    assert found(root, SLURM_MEM_PER_NODE="2000") == ()


@pytest.mark.parametrize("text", [None, "nonsense\n"])
def test_a_limit_that_cannot_be_read_is_unknown(root: Path, text: str | None) -> None:
    """Neither a problem nor "none"."""
    (root / "proc/self/cgroup").unlink()
    if text is not None:
        put(root, "proc/self/cgroup", text)
    seen, facts = problems({"SLURM_MEM_PER_NODE": "2000"}, root)
    assert seen == () and facts["memory_limit_mb"].startswith("unknown: ")


# --- devices ----------------------------------------------------------------------------------


def gpus(root: Path, count: int, *, driver: bool = True) -> None:
    if driver:
        put(root, "proc/driver/nvidia/version", "NVRM version: …\n")
    for number in range(count):
        put(root, f"dev/nvidia{number}")
    for name in ("nvidiactl", "nvidia-uvm", "nvidia-modeset"):
        put(root, f"dev/{name}")


def test_all_gpus_are_there(root: Path) -> None:
    gpus(root, 8)
    seen, facts = problems({"SLURM_GPUS_ON_NODE": "8"}, root)
    assert seen == () and facts["gpus"] == "8"


def test_a_gpu_is_missing(root: Path) -> None:
    gpus(root, 7)
    assert found(root, SLURM_GPUS_ON_NODE="8") == ("7 GPUs can be used, Slurm granted 8",)
    assert found(root) == ()  # none was asked for


@pytest.mark.skipif(os.getuid() == 0, reason="root may open everything")
def test_a_gpu_that_this_user_may_not_open(root: Path) -> None:
    gpus(root, 2)
    (root / "dev/nvidia1").chmod(0)
    assert found(root, SLURM_GPUS_ON_NODE="2") == ("1 GPUs can be used, Slurm granted 2",)


def test_a_driver_that_is_not_loaded(root: Path) -> None:
    for number in range(8):
        put(root, f"sys/bus/pci/devices/0000:1{number}:00.0/vendor", "0x10de\n")
        put(root, f"sys/bus/pci/devices/0000:1{number}:00.0/class", "0x030200\n")
    put(root, "sys/bus/pci/devices/0000:20:00.0/vendor", "0x10de\n")  # an NVSwitch
    put(root, "sys/bus/pci/devices/0000:20:00.0/class", "0x068000\n")
    put(root, "sys/bus/pci/devices/0000:21:00.0/vendor", "0x15b3\n")  # a network card
    put(root, "sys/bus/pci/devices/0000:21:00.0/class", "0x020700\n")
    (seen,) = found(root, SLURM_GPUS_ON_NODE="8")
    assert seen == "8 NVIDIA GPUs on the PCI bus, and no driver: is the nvidia module loaded?"


def test_an_instinct_without_its_driver(root: Path) -> None:
    for number in range(8):
        at = f"sys/bus/pci/devices/0000:1{number}:00.0"
        for name, text in (("vendor", "0x1002"), ("device", "0x74a1"), ("class", "0x120000")):
            put(root, f"{at}/{name}", f"{text}\n")
        if number < 6:
            (root / at / "driver").symlink_to("../../../../bus/pci/drivers/amdgpu")
    (seen,) = found(root, SLURM_GPUS_ON_NODE="8")
    assert seen == (
        "2 of 8 AMD Instinct on the PCI bus have no driver: is the amdgpu module loaded?"
    )
    assert found(root, SLURM_GPUS_ON_NODE="6") == ()


def test_gpus_that_are_not_nvidias_are_not_judged(root: Path) -> None:
    put(root, "sys/bus/pci/devices/0000:10:00.0/vendor", "0x1002\n")
    put(root, "sys/bus/pci/devices/0000:10:00.0/class", "0x030200\n")
    assert found(root, SLURM_GPUS_ON_NODE="8") == ()


@pytest.fixture
def memlock():
    """A low soft limit of locked memory, for real."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_MEMLOCK, before)


def test_infiniband_needs_locked_memory(root: Path, memlock: None) -> None:
    assert found(root) == ()  # no InfiniBand here
    (root / "dev/infiniband").mkdir(parents=True)
    (seen,) = found(root)
    assert seen.startswith("a rank may lock 0.0625 MiB of memory, InfiniBand needs it without")
    assert problems({}, root)[1]["memlock"] == "65536"


# --- addresses and ports ------------------------------------------------------------------------


def test_the_address_towards_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address_towards("tcp://127.0.0.1:5000") == "127.0.0.1"
    monkeypatch.setenv("SUPERV_NODE_ADDRESS", "127.9.9.9")
    assert address_towards("tcp://127.0.0.1:5000") == "127.9.9.9"


def test_a_free_port_is_free_and_another_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port, port + 1, "127.0.0.1", None) == port + 1
        with pytest.raises(OSError, match=f"no free port in {port}-{port}"):
            free_port(port, port, "127.0.0.1", None)
    assert {free_port(31000, 31001, "127.0.0.1", 31000) for _ in range(20)} == {31001}
