"""Forms that are rare: answers of tools, counters of other drivers, and a node's own past.

What is right of each is in the source that its name gives.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checks import NOW, Case, Change, both, each_of, looks, run, wrote
from healthy import IB, no_nics, port
from sick_rows import FAIL, MINUTE, WARN, grew, rows

from healthchecks.frame.check import Gap, Status
from tests.hardware import tree_nics
from tests.hardware.tree import Tree
from tests.hardware.tree_os import TOTAL_KB

OK, UNKNOWN = Status.OK, Status.UNKNOWN
DAY_S = 86_400.0

# --- ipmitool: `1 | 11/24/2025 | 08:00:07 UTC | SENSOR | EVENT | Asserted`


def _event(sensor: str, event: str, *, direction: str = "Asserted") -> str:
    return f"   1 | 11/24/2025 | 08:00:07 UTC | {sensor} | {event} | {direction}"


SEL = [
    Case(
        check="ipmi.sel",
        name=f"{source}: {sensor} {event}",
        change=wrote("dev/ipmi0", ""),
        programs={"ipmitool": _event(sensor, event)},
        status=status,
        seen=event if status is not OK else "none of them an error",
    )
    for status, source, sensor, event in (
        (WARN, "IPMI 2.0 table 42-3, 0x23", "Watchdog2 #0xca", "Hard reset"),
        (WARN, "IPMI 2.0 table 42-3, 0x23", "Watchdog 2 IPMI Watchdog", "Power cycle"),
        (WARN, "IPMI 2.0 table 42-3, 0x29", "Battery VBAT", "Low"),
        (WARN, "IPMI 2.0 table 42-3, 0x29", "Battery #0x68", "Failed"),
        (WARN, "IPMI 2.0 table 42-3, 0x0c", "Memory DIMM_A1", "Configuration Error"),
        (
            WARN,
            "IPMI 2.0 table 42-3, 0x0c",
            "Memory DIMM_A1",
            "Correctable ECC logging limit reached",
        ),
        (WARN, "IPMI 2.0 table 42-3, 0x0c", "Memory #0x87", "Critical Overtemperature"),
        (WARN, "IPMI 2.0 table 42-3, 0x10", "Event Logging Disabled SEL", "Log full"),
        (
            WARN,
            "IPMI 2.0 table 42-3, 0x10",
            "Event Logging Disabled SEL",
            "Correctable memory error logging disabled",
        ),
        (WARN, "IPMI 2.0 table 42-3, 0x0d", "Drive Slot / Bay #0x60", "Drive Fault"),
        (WARN, "IPMI 2.0 table 42-3, 0x0d", "Drive Slot Drive 3", "Predictive Failure"),
        (WARN, "IPMI 2.0 table 42-3, 0x08", "Power Supply PSU2", "Power Supply AC lost"),
        (WARN, "IPMI 2.0 table 42-3, 0x21", "Slot / Connector PCIe 4", "Fault Status"),
        (WARN, "IPMI 2.0 table 42-3, 0x1b", "Cable / Interconnect #0x3", "Config Error"),
        (WARN, "IPMI 2.0 table 42-3, 0x20", "OS Stop/Shutdown #0x2", "Run-time critical stop"),
        (
            WARN,
            "IPMI 2.0 table 42-2, a threshold",
            "Temperature CPU1",
            "Upper Non-recoverable going high",
        ),
        (WARN, "IPMI 2.0 table 42-2, a threshold", "Fan FAN7", "Lower Non-recoverable going low"),
        (
            FAIL,
            "IPMI 2.0 table 42-3, 0x07",
            "Processor CPU0_Status",
            "Uncorrectable machine check exception",
        ),
        (
            FAIL,
            "IPMI 2.0 table 42-3, 0x07",
            "Processor #0x80",
            "SM BIOS Uncorrectable CPU-complex Error",
        ),
        (FAIL, "IPMI 2.0 table 42-3, 0x13", "Critical Interrupt #0x70", "Bus Fatal Error"),
        (OK, "IPMI 2.0 table 42-3, 0x1f", "OS Boot #0x0", "C: boot completed"),
        (OK, "IPMI 2.0 table 42-3, 0x12", "System Event #0x83", "Timestamp Clock Sync"),
        (OK, "IPMI 2.0 table 42-3, 0x10", "Event Logging Disabled SEL", "Log area reset/cleared"),
        (OK, "IPMI 2.0 table 42-3, 0x05", "Physical Security #0x73", "General Chassis intrusion"),
        (
            OK,
            "IPMI 2.0 table 42-3, 0x2b",
            "Version Change #0x1",
            "Firmware or software change detected with associated Entity",
        ),
        (OK, "IPMI 2.0 table 42-3, 0x22", "System ACPI Power State #0x2", "S0/G0: working"),
        (OK, "IPMI 2.0 table 42-3, 0x08", "Power Supply PSU1", "Presence detected"),
        (OK, "IPMI 2.0 table 42-3, 0x0d", "Drive Slot / Bay #0x60", "Drive Present"),
    )
]

# --- dcgmi diag -j


def _dcgm(outer: str, *tests: dict[str, Any], **more: Any) -> dict[str, str]:
    document = {outer: {"test_categories": [{"category": "Deployment", "tests": [*tests]}], **more}}
    return {"dcgmi": json.dumps(document)}


def _test(*results: dict[str, Any], name: str = "software", **more: Any) -> dict[str, Any]:
    return {"name": name, "results": [*results], **more}


_PASS = {"status": "Pass", "entity_group": "GPU", "entity_group_id": 1, "entity_id": 0}
_BAD = {"warning": "it is too hot", "error_severity": 2, "error_category": 1, "error_id": 41}
DCGM = [
    Case(
        check="dcgm.diag",
        name=name,
        programs=_dcgm(outer, *tests),
        status=status,
        seen=seen,
    )
    for name, outer, status, seen, tests in (
        (
            "DCGM 3, a deny list",
            "DCGM GPU Diagnostic",
            OK,
            "1 tests passed",
            [_test({"status": "Pass"}, name="Denylist")],
        ),
        (
            "DCGM 4, a test that is skipped beside one that passes",
            "DCGM Diagnostic",
            OK,
            "1 tests passed",
            [_test(_PASS), _test({**_PASS, "status": "Skip"}, name="pcie")],
        ),
        (
            "DCGM 4, nothing but what was skipped",
            "DCGM Diagnostic",
            UNKNOWN,
            "ran no test",
            [_test({**_PASS, "status": "Skip"}), _test({**_PASS, "status": "Not Run"})],
        ),
        (
            "DCGM 4, a processor of Grace",
            "DCGM Diagnostic",
            FAIL,
            "cpu0: cpu_eud: it is too hot",
            [
                _test(_PASS),
                _test(
                    {
                        "status": "Fail",
                        "entity_group": "CPU",
                        "entity_group_id": 7,
                        "entity_id": 0,
                        "warnings": [_BAD],
                    },
                    name="cpu_eud",
                ),
            ],
        ),
        (
            "DCGM 4, an NVSwitch",
            "DCGM Diagnostic",
            FAIL,
            "nvswitch3: software: it is too hot",
            [
                _test(
                    {
                        "status": "Fail",
                        "entity_group": "NvSwitch",
                        "entity_id": 3,
                        "warnings": [_BAD],
                    }
                )
            ],
        ),
        (
            "DCGM 3, several GPUs at once",
            "DCGM GPU Diagnostic",
            FAIL,
            "software: it is too hot (isolate)",
            [
                _test(
                    {
                        "status": "Fail",
                        "gpu_ids": "0,1",
                        "warnings": "it is too hot",
                        "error_severity": 2,
                    }
                )
            ],
        ),
        (
            "DCGM 3, one GPU by number",
            "DCGM GPU Diagnostic",
            FAIL,
            "gpu5: software: it is too hot",
            [_test({"status": "FAIL", "gpu_ids": "5", "warnings": [_BAD]})],
        ),
    )
]

# --- counters of packets that were sent again


def _bnxt(tree: Tree) -> None:
    no_nics(tree)
    port(
        "bnxt_re0",
        "0000:3d:00.0",
        "enp61s0f0np0",
        board="",
        pci=("0x14e4", "0x1750"),
        counters=(),
        address="10.5.0.17",
    )(tree)
    for name in ("to_retransmits", "seq_err_naks_rcvd", "oos_drop_count", "active_qps"):
        tree.write(f"{IB}/bnxt_re0/ports/1/hw_counters/{name}", "4")


def _efa(tree: Tree) -> None:
    no_nics(tree)
    port(
        "rdmap80s0",
        "0000:50:00.0",
        layer="Unknown",
        rate="100 Gb/sec (4X EDR)",
        board="",
        pci=("0x1d0f", "0xefa2"),
        counters=(),
    )(tree)
    for name in ("retrans_pkts", "retrans_timeout_events", "unresponsive_remote_events"):
        tree.write(f"{IB}/rdmap80s0/ports/1/hw_counters/{name}", "4")


def _virtual(tree: Tree) -> None:
    """As in a cloud: virtual functions count what their own queues see, and nothing of the link."""
    for device in tree_nics.FABRIC:
        tree.remove(f"{IB}/{device}/ports/1/counters")


COUNTERS = [
    *rows(
        "ib.counters",
        (
            WARN,
            "mlx5_2: 61 acknowledgements that timed out within 60 s",
            "mlx5 hw_counters on InfiniBand, timeouts",
            grew("mlx5_2", "hw_counters/local_ack_timeout_err", 61),
        ),
        (
            WARN,
            "packets that the peer missed",
            "mlx5 hw_counters on InfiniBand, sequence",
            grew("mlx5_2", "hw_counters/packet_seq_err", 9000),
        ),
        (
            WARN,
            "answers that were missed",
            "mlx5 hw_counters on InfiniBand, implied",
            grew("mlx5_2", "hw_counters/implied_nak_seq_err", 9000),
        ),
        (
            OK,
            "8 ports",
            "mlx5 hw_counters, a few timeouts as of a peer that restarted",
            grew("mlx5_2", "hw_counters/local_ack_timeout_err", 60),
        ),
        (
            OK,
            "8 ports",
            "mlx5 hw_counters, connections that a peer's death ended",
            both(
                *(
                    grew(device, f"hw_counters/{name}", 500)
                    for device in tree_nics.FABRIC
                    for name in ("req_cqe_error", "rnr_nak_retry_err")
                )
            ),
        ),
        earlier=MINUTE,
    ),
    Case(
        check="ib.counters",
        name="virtual functions count retries alone",
        earlier=[(60.0, _virtual)],
        change=grew("mlx5_2", "hw_counters/packet_seq_err", 9000),
        status=WARN,
        seen="mlx5_2: 9000 packets that the peer missed",
    ),
    Case(
        check="roce.counters",
        name="Broadcom, bnxt_re hw_counters: timeouts",
        earlier=[(60.0, _bnxt)],
        change=grew("bnxt_re0", "hw_counters/to_retransmits", 900),
        status=WARN,
        seen="bnxt_re0: 900 acknowledgements that timed out",
    ),
    Case(
        check="roce.counters",
        name="Broadcom, bnxt_re hw_counters: order",
        earlier=[(60.0, _bnxt)],
        change=grew("bnxt_re0", "hw_counters/oos_drop_count", 90000),
        status=WARN,
        seen="bnxt_re0: 90000 packets out of sequence",
    ),
    Case(
        check="roce.counters",
        name="AWS, efa hw_counters: timeouts",
        earlier=[(60.0, _efa)],
        change=grew("rdmap80s0", "hw_counters/retrans_timeout_events", 900),
        status=WARN,
        seen="rdmap80s0: 900 acknowledgements that timed out",
    ),
    Case(
        check="roce.counters",
        name="AWS, efa hw_counters: peers that died",
        earlier=[(60.0, _efa)],
        change=grew("rdmap80s0", "hw_counters/unresponsive_remote_events", 900),
        status=OK,
    ),
]

# --- memory against the node's own past


def memory(share: float, *, nodes: int = 2) -> Change:
    """So much of it is there, spread evenly."""

    def do(tree: Tree) -> None:
        total = int(TOTAL_KB * share)
        text = tree.read("proc/meminfo").splitlines()
        tree.write("proc/meminfo", "\n".join([f"MemTotal:       {total} kB", *text[1:]]))
        for node in range(nodes):
            tree.write(
                f"sys/devices/system/node/node{node}/meminfo",
                f"Node {node} MemTotal:       {total // nodes} kB",
            )

    return do


def _with_gpu_memory(tree: Tree) -> None:
    """Grace Hopper and GB200: the driver adds the GPUs' memory as NUMA nodes without CPUs."""
    text = tree.read("proc/meminfo").splitlines()
    tree.write("proc/meminfo", "\n".join([f"MemTotal:       {TOTAL_KB * 2} kB", *text[1:]]))
    tree.write("sys/devices/system/node/node2/meminfo", f"Node 2 MemTotal: {TOTAL_KB} kB")
    tree.write("sys/devices/system/node/node2/cpulist", "")


def _without(tree: Tree) -> None:
    memory(1.0)(tree)
    tree.remove("sys/devices/system/node/node2")


MEMORY = [
    Case(
        check="mem.size",
        name="one of 32 modules on each socket is no longer seen",
        earlier=[(DAY_S, memory(1.0))],
        change=memory(30 / 32),
        status=FAIL,
        seen="1890 GiB of memory, and 2016 were here before",
    ),
    Case(
        check="mem.size",
        name="a guest whose host may take memory away",
        earlier=[(DAY_S, memory(1.0))],
        change=both(memory(0.5), wrote("sys/module/virtio_balloon/initstate", "live")),
        status=WARN,
        seen="were here before",
    ),
    Case(
        check="mem.size",
        name="a kernel that keeps a little more for a crash dump",
        earlier=[(DAY_S, memory(1.0))],
        change=memory(0.971),
        status=OK,
    ),
    Case(
        check="mem.size",
        name="less, then less again: the most counts",
        earlier=[(2 * DAY_S, memory(1.0)), (DAY_S, memory(0.98))],
        change=memory(0.969),
        status=FAIL,
        seen="were here before",
    ),
    Case(
        check="mem.size",
        name="memory that was added",
        earlier=[(DAY_S, memory(0.5))],
        change=memory(1.0),
        status=OK,
    ),
    Case(
        check="mem.size",
        name="taken out on purpose, and people said so",
        earlier=[(DAY_S, memory(1.0))],
        change=memory(0.5),
        repaired=NOW - 60.0,
        status=OK,
    ),
    Case(
        check="mem.size",
        name="GPUs whose memory the driver has not added yet",
        earlier=[(DAY_S, _with_gpu_memory)],
        change=_without,
        status=OK,
    ),
]

CASES = [*SEL, *DCGM, *COUNTERS, *MEMORY]


@each_of(CASES)
def test_case(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path)


@pytest.mark.parametrize("check", ["ib.counters", "roce.counters"])
def test_retries_have_no_rate_at_the_first_look(check: str, tmp_path: Path) -> None:
    first = looks(Case(check=check, name="first", status=UNKNOWN), tmp_path)[-1]
    assert (first.status, first.gap) == (UNKNOWN, Gap.NOT_YET)
