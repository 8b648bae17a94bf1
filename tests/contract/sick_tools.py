"""Sick, in other words: what tools print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from checks import Case, wrote
from sick_rows import (
    FAIL,
    MINUTE,
    WARN,
    tool,
)

from healthchecks.frame.check import Status


def _link(**fields: str) -> str:
    return json.dumps({"result": {"output": {"Info": fields}}})


def _dcgm(*results: Mapping[str, Any], summary: Mapping[str, Any] | None = None) -> str:
    test: dict[str, Any] = {"name": "software", "results": [*results]}
    if summary is not None:
        test["test_summary"] = summary
    outer = {"test_categories": [{"category": "Deployment", "tests": [test]}]}
    return json.dumps({"DCGM Diagnostic": outer})


_ECC = {"warning": "DBE pending page retirements", "error_severity": 2, "error_category": 1}
_CONFIG = {"warning": "nvidia_peermem is loaded twice", "error_severity": 5, "error_category": 3}
SEL = "ipmi.sel"
_SEL_DATE = "11/24/2025"
_TOOL_DATE = {"options": {"window_h": 1000}, "change": wrote("dev/ipmi0", "")}
_NODE = (
    "NodeName=node-017 Arch=x86_64 CoresPerSocket={cores} CPUAlloc=0 Gres=gpu:b200:{gpus} "
    "OS=Linux 6.8.0 RealMemory={memory} Sockets=2 Boards=1 State=IDLE ThreadsPerCore={threads} "
    "TmpDisk=0 Comment=was ThreadsPerCore=9 until May Reason=Gres=gpu:1"
)
_REAL = (
    "NodeName=node-017 CPUs=120 Boards=1 SocketsPerBoard=2 CoresPerSocket=30 ThreadsPerCore=2 "
    "RealMemory=2063927"
)


def _slurm(
    cores: int = 30, gpus: int = 8, memory: int = 2000000, threads: int = 2
) -> dict[str, str]:
    node = _NODE.format(cores=cores, gpus=gpus, memory=memory, threads=threads)
    scontrol = f"#!/bin/sh\ncase $2 in node) echo '{node}';; *) echo SlurmdParameters=none;; esac\n"
    return {"slurmd": _REAL, "scontrol": scontrol}


def _smart(**values: object) -> str:
    log = {
        "critical_warning": 0,
        "avail_spare": 100,
        "spare_thresh": 10,
        "percent_used": 3,
        "media_errors": 0,
    }
    return json.dumps(log | values)


TOOLS = [
    *tool(
        "ib.cable",
        "mlxlink",
        (
            WARN,
            "unplugged",
            "MFT 4.30, opcode 1024",
            _link(**{"Status Opcode": "1024", "Recommendation": "Cable is unplugged"}),
        ),
        (
            WARN,
            "Raw Physical BER",
            "MFT 4.30",
            _link(**{"Raw Physical BER": "2E-4", "Status Opcode": "0"}),
        ),
        (
            WARN,
            "Effective Physical BER",
            "mstflint, text",
            "Effective Physical BER             : 3E-9\nStatus Opcode   : 0",
        ),
        (
            WARN,
            "Bad signal",
            "MFT, an advice",
            _link(
                **{
                    "Raw Physical BER": "1E-9",
                    "Status Opcode": "14",
                    "Recommendation": "Bad signal",
                }
            ),
        ),
    ),
    *tool(
        SEL,
        "ipmitool",
        (
            FAIL,
            "Uncorrectable ECC",
            "ipmitool 1.8.18",
            f"1 | {_SEL_DATE} | 08:00:00 | Memory #0x53 | Uncorrectable ECC | Asserted",
        ),
        (
            FAIL,
            "Uncorrectable ECC",
            "ipmitool 1.8.19: date of two digits, zone",
            "1 | 11/24/25 | 08:00:07 UTC | Memory #0x88 | Uncorrectable ECC | Asserted",
        ),
        (
            FAIL,
            "Thermal Trip",
            "ipmitool 1.8.19",
            "1 | 11/24/25 | 08:00:07 UTC | Processor #0xc9 | Thermal Trip | Asserted",
        ),
        (
            FAIL,
            "IERR",
            "ipmitool, German locale",
            "1 | 24.11.2025 | 08:00:07 CET | Processor CPU1 | IERR | Asserted",
        ),
        (
            FAIL,
            "PCI SERR",
            "ipmitool, American clock",
            "1 | 11/24/2025 | 08:00:07 AM UTC | Critical Interrupt #0x90 | PCI SERR | Asserted",
        ),
        (
            WARN,
            "Bus Correctable",
            "ipmitool",
            "1 | 11/24/2025 | 08:00:07 | Critical Interrupt #0x90 "
            "| Bus Correctable error | Asserted",
        ),
        (
            WARN,
            "Non-recoverable",
            "a fan",
            "1 | 11/24/2025 | 08:00:07 | Fan FAN3 | Transition to Non-recoverable | Asserted",
        ),
        (
            WARN,
            "Redundancy Lost",
            "a power supply",
            "1 | 11/24/2025 | 08:00:07 | Power Supply #0x62 | Redundancy Lost | Asserted",
        ),
        (
            WARN,
            "Upper Critical",
            "a threshold, with its reading",
            "1 | 11/24/2025 | 08:00:07 | "
            "Temperature Inlet | Upper Critical going high | Asserted | Reading 48 > Threshold "
            "45 C",
        ),
        (WARN, "kernel panic", "a crash of Linux", "f0 | Linux kernel panic: Fatal excep"),
        (
            WARN,
            "kernel panic",
            "a crash of Linux after a boot of long ago: the record itself has no time",
            " 1 | 01/05/24 | 10:00:00 UTC | System Boot Initiated #0x41 | Initiated by power up | "
            "Asserted\n 2 | Linux kernel panic: Fatal excep",
        ),
        **_TOOL_DATE,
    ),
    Case(
        check=SEL,
        name="a record that nobody can read",
        programs={"ipmitool": "1 | yesterday | noon | Memory | Uncorrectable ECC | Asserted"},
        change=wrote("dev/ipmi0", ""),
        status=Status.UNKNOWN,
        seen="can't be read",
    ),
    *tool(
        "dcgm.diag",
        "dcgmi",
        (
            FAIL,
            "gpu3: software: DBE",
            "DCGM 4, of a GPU",
            _dcgm({"status": "Fail", "entity_id": 3, "warnings": [_ECC]}),
        ),
        (
            FAIL,
            "software: DBE",
            "DCGM 4.4, in the summary alone",
            _dcgm(
                {"status": "Fail", "entity_id": 0},
                {"status": "Fail", "entity_id": 1},
                summary={"status": "Fail", "warnings": [_ECC]},
            ),
        ),
        (
            WARN,
            "software: nvidia_peermem is loaded twice (configuration)",
            "DCGM 4.4, a setting, in the summary",
            _dcgm(
                *({"status": "Fail", "entity_id": n} for n in range(8)),
                summary={"status": "Fail", "warnings": [_CONFIG]},
            ),
        ),
        (
            FAIL,
            "gpu5: software: bad",
            "DCGM 3.3, a GPU of its own",
            json.dumps(
                {
                    "DCGM GPU Diagnostic": {
                        "test_categories": [
                            {
                                "tests": [
                                    {
                                        "name": "software",
                                        "results": [
                                            {
                                                "status": "FAIL",
                                                "gpu_id": "5",
                                                "info": "bad",
                                                "error_severity": 2,
                                            }
                                        ],
                                    }
                                ]
                            }
                        ]
                    }
                }
            ),
        ),
    ),
    *tool(
        "nvme.smart",
        "nvme",
        (FAIL, "media or internal errors", "NVMe 2.0, bit 2", _smart(critical_warning=4)),
        (
            FAIL,
            "read-only",
            "NVMe 2.0, bit 3, nvme-cli in detail",
            _smart(critical_warning={"value": 8, "ro": 1}),
        ),
        (WARN, "temperature", "NVMe 2.0, bit 1", _smart(critical_warning=2)),
        (FAIL, "spare blocks", "the spare is below its threshold", _smart(avail_spare=5)),
        (WARN, "of its life", "an older nvme-cli", _smart(percent_used=104)),
    ),
    *(
        Case(check="slurm.drift", name=source, status=status, seen=seen, programs=_slurm(**what))
        for status, seen, source, what in (
            (FAIL, "CoresPerSocket is 32", "cores that are not there", {"cores": 32}),
            (
                FAIL,
                "ThreadsPerCore is 1",
                "hyperthreads, with a comment that names some",
                {"threads": 1},
            ),
            (FAIL, "9000000 MiB", "memory that is not there", {"memory": 9_000_000}),
            (WARN, "1000 MiB", "memory left out", {"memory": 1000}),
            (FAIL, "Gres has 9 GPUs", "a GPU that is not there", {"gpus": 9}),
        )
    ),
    *(
        Case(
            check="services",
            name=f"systemctl says {state}",
            programs={"systemctl": f"#!/bin/sh\necho {state}; exit 3\n"},
            change=wrote("run/systemd/system/x", ""),
            options={"units": ["slurmd"]},
            status=status,
            seen=state,
        )
        for state, status in (("failed", FAIL), ("inactive", FAIL), ("activating", WARN))
    ),
    *(
        Case(
            check="roce.qos",
            name=source,
            programs={
                "dcb": f"#!/bin/sh\necho 'pfc-cap 8 macsec-bypass off delay 0'\n"
                f"echo 'prio-pfc {pfc}'\n"
            },
            options={"pfc": [3]},
            status=FAIL,
            seen="PFC on priorities",
        )
        for source, pfc in (
            ("dcb of iproute2 6.1, off everywhere", " ".join(f"{n}:off" for n in range(8))),
            ("dcb of iproute2, another priority", "0:off 1:off 2:off 3:off 4:on 5:off 6:off 7:off"),
            ("dcb, two priorities", "0:on 1:off 2:off 3:on 4:off 5:off 6:off 7:off"),
        )
    ),
    *(
        Case(
            check="roce.discards",
            name=source,
            programs={
                "ethtool": "#!/bin/sh\nif [ -e $0.n ]; then v=90000; else v=0; : >$0.n; fi\n"
                f"echo '{head}'\necho \"     rx_discards_phy: $v\"\n"
            },
            earlier=MINUTE,
            status=WARN,
            seen="packets discarded",
        )
        for source, head in (
            ("ethtool 6.1, mlx5", "NIC statistics:"),
            ("ethtool, among other counters", "     rx_packets_phy: 5"),
            ("ethtool, with pauses", "     rx_prio3_pause: 7"),
        )
    ),
]
