"""Lines of the NVIDIA driver, as it writes them, and what they mean."""

from __future__ import annotations

import pytest

from healthchecks.frame.check import Status
from healthchecks.sources.xid import RULES, XIDS, Act, driver_loaded, parse

GPU = "NVRM: Xid (PCI:0000:3b:00): "

# A line of each row of the table of actions.
LINES = [
    (f"{GPU}8, pid=4242, name=python3, Channel 00000008", 8, Act.APP),
    (f"{GPU}11, pid=4242, name=python3, Ch 00000008", 11, Act.APP),
    (
        f"{GPU}13, pid=79749, name=python3, Graphics SM Warp Exception on (GPC 1, TPC 3, SM 0): "
        "Illegal Instruction Encoding",
        13,
        Act.APP,
    ),
    (
        f"{GPU}31, pid=79749, name=exe, Ch 0000000a, intr 00000000. MMU Fault: ENGINE GRAPHICS "
        "GPC2 GPCCLIENT_T1_7 faulted @ 0x2b57_b3000000. Fault is of type FAULT_PDE "
        "ACCESS_TYPE_VIRT_WRITE",
        31,
        Act.APP,
    ),
    (f"{GPU}32, pid=1722, name=python3, Channel ID 0000004a intr0 00040000", 32, Act.APP),
    (f"{GPU}39, pid=77, name=python3, CCMDs 00000000 00000000", 39, Act.APP),
    (f"{GPU}69, pid=34566, name=python3, Class Error: ChId 0008, Class 0000cbc0", 69, Act.APP),
    (f"{GPU}37, pid=1, name=a", 37, Act.IGNORE),
    (f"{GPU}38, pid=1, name=a", 38, Act.IGNORE),
    (f"{GPU}43, pid=4242, name=python3, Ch 00000008", 43, Act.SOLO),
    (f"{GPU}44, pid='<unknown>', name=<unknown>, Ch 00000008", 44, Act.IGNORE),
    (f"{GPU}45, pid=4242, name=python3, Ch 00000008", 45, Act.SOLO),
    (f"{GPU}66, pid=1, name=a", 66, Act.IGNORE),
    (f"{GPU}67, pid=1, name=a", 67, Act.IGNORE),
    (f"{GPU}121, pid=1, name=a, C2C Link 3", 121, Act.IGNORE),
    (f"{GPU}141, pid=1, name=a", 141, Act.IGNORE),
    (
        f"{GPU}48, pid='<unknown>', name=<unknown>, An uncorrectable double bit error (DBE) has "
        "been detected on GPU in the framebuffer at partition 6, subpartition 0.",
        48,
        Act.RESET,
    ),
    (f"{GPU}171, pid=1, name=a, Uncorrectable DRAM error", 171, Act.RESET),
    (f"{GPU}172, pid=1, name=a, Uncorrectable SRAM error", 172, Act.RESET),
    (
        f"{GPU}63, pid='<unknown>', name=<unknown>, Row Remapper: New row marked for remapping, "
        "reset gpu to activate.",
        63,
        Act.REMAP,
    ),
    (f"{GPU}64, pid=1, name=a, Row Remapper: Error: Unable to remap row", 64, Act.RESET),
    (f"{GPU}92, pid=1, name=a, High single-bit ECC error rate", 92, Act.WATCH),
    (f"{GPU}93, pid=1, name=a", 93, Act.WATCH),
    (
        f"{GPU}94, pid=7194, name=python3, Contained: SM (0x1). RST: No, D-RST: No",
        94,
        Act.CONTAINED,
    ),
    (f"{GPU}95, pid=7194, name=python3, Uncontained: LTC TAG (0x2,0x0). RST: Yes", 95, Act.RESET),
    (f"{GPU}46, pid=1, name=a, Ch 00000008", 46, Act.RESET),
    (f"{GPU}62, pid='<unknown>', name=<unknown>, 0000(0000) 00000000 00000000", 62, Act.RESET),
    (f"{GPU}74, pid=1, name=a, NVLink: fatal error detected on link 3(0x10000)", 74, Act.RESET),
    (f"{GPU}109, pid=1, name=a, Ch 00000008, errorString CTX SWITCH TIMEOUT", 109, Act.RESET),
    (f"{GPU}110, pid=1, name=a", 110, Act.RESET),
    (
        f"{GPU}119, pid=1404, name=nvidia-smi, Timeout after 6s of waiting for RPC response from "
        "GPU0 GSP! Expected function 76 (GSP_RM_CONTROL) (0x20802a02 0x0).",
        119,
        Act.RESET,
    ),
    (f"{GPU}120, pid=1, name=a, GSP task exception: stack pointer overflow", 120, Act.RESET),
    (f"{GPU}136, pid=1, name=a, Link training failed for link 5", 136, Act.RESET),
    (f"{GPU}140, pid=1, name=a, An uncorrectable ECC error detected", 140, Act.RESET),
    (f"{GPU}143, pid=1, name=a, GPU Initialization Failure", 143, Act.RESET),
    (f"{GPU}155, NVLink: Link 3 is down", 155, Act.RESET),
    (f"{GPU}156, pid=1, name=a, Resource retirement event", 156, Act.RESET),
    (f"{GPU}158, pid=1, name=a, GPU Fatal Timeout", 158, Act.RESET),
    (f"{GPU}79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.", 79, Act.HOST),
    (f"{GPU}151, pid=1, name=a, Key rotation error", 151, Act.REBOOT),
    (f"{GPU}54, pid=1, name=a, Power state Change detected", 54, Act.SUPPORT),
    (f"{GPU}157, pid=1, name=a", 157, Act.SUPPORT),
    (f"{GPU}167, pid=1, name=a, PCIe fatal timeout", 167, Act.SUPPORT),
    (f"{GPU}168, Errors found in WPR", 168, Act.SUPPORT),
    (f"{GPU}999, something new", 999, Act.WATCH),
]


@pytest.mark.parametrize(("line", "code", "act"), LINES, ids=[f"{c}" for _, c, _ in LINES])
def test_a_line_of_each_row(line: str, code: int, act: Act) -> None:
    event = parse(line)
    assert event is not None
    assert (event.device, event.code, event.xid.act) == ("0000:3b:00", code, act)
    assert event.name == f"Xid {code}"
    assert event.xid.meaning
    if RULES[act].status is not Status.OK:
        assert event.xid.advice()


@pytest.mark.parametrize(
    ("code", "unit", "fatal", "words", "reason", "act"),
    [
        (144, "SAW_MVB", "Nonfatal", "0x00000001 0x00000001", 0, Act.IGNORE),
        (144, "SAW_MVB", "Fatal", "0x00000001 0x00000002", 0, Act.RESET),
        (145, "RLW_RXPIPE", "Nonfatal", "0x0409a0c2 0x00000008 0x00000001", 0, Act.IGNORE),
        (145, "RLW_SRC_TRACK", "Nonfatal", "0x040988e2 0x00000008", 0, Act.NVLINK),
        (145, "RLW_SRC_TRACK", "Fatal", "0x00000007 0x00000001", 0, Act.RESET),
        (145, "RLW_REMAP", "Nonfatal", "0x00000004 0x00000001", 0, Act.NVLINK),
        (145, "RLW_REMAP", "Fatal", "0x00000004 0x00000040", 0, Act.RESET),
        (145, "RLW_REMAP", "Nonfatal", "0x00000004 0x00000100", 0, Act.IGNORE),
        (145, "RLW_TAGSTATE", "Fatal", "0x00000008 0x00100000", 0, Act.RESET),
        (145, "RLW_CTRL", "Nonfatal", "0x00000003 0x80000000", 0, Act.IGNORE),
        (145, "RLW_RSPCOL", "Fatal", "0x00000005 0x00000002", 0, Act.RESET),
        (145, "NEW_UNIT", "Fatal", "0x00000001 0x00000001", 0, Act.RESET),
        (145, "NEW_UNIT", "Nonfatal", "0x00000001 0x00000001", 0, Act.NVLINK),
        (146, "TLW_CTRL", "Fatal", "0x00000009 0x00000004", 0, Act.RESET),
        (146, "TLW_RX/TLW_RX_PIPE0", "Fatal", "0x0000000a 0x00000004", 0, Act.RESET),
        (146, "TLW_TX/TLW_TX_PIPE1", "Nonfatal", "0x0000000d 0x00000001", 0, Act.IGNORE),
        (147, "TREX", "Nonfatal", "0x0000000e 0x00000001", 0, Act.IGNORE),
        (148, "NVLPW_CTRL/NVLPW", "Nonfatal", "0x0000000f 0x80000000", 0, Act.IGNORE),
        (149, "NETIR", "Fatal", "0x000fe406 0x00000000", 0, Act.RESET),
        (149, "NETIR_BER_EVENT", "Nonfatal", "0x00086226 0x00000001", 0, Act.WATCH),
        (149, "NETIR_MFDE_EVENT", "Fatal", "0x00000014 0x00000001", 0, Act.RESET),
        (149, "NETIR_MFDE_EVENT", "Nonfatal", "0x00000014 0x00000003", 0, Act.IGNORE),
        (149, "NETIR_LINK_EVT", "Fatal", "0x004505c6 0x00000000", 4, Act.RESET),
        (149, "NETIR_LINK_EVT/NETIR_LINK_DOWN", "Fatal", "0x021425c6 0x00000000", 33, Act.RESET),
        (149, "NETIR_LINK_EVT", "Fatal", "0x026001c6 0x00000000", 38, Act.IGNORE),
        (150, "MSE_WATCHDOG", "Fatal", "0x00000000 0x00000000", 0, Act.RESET),
    ],
)
@pytest.mark.parametrize("process", ["", "pid=876767, name=ray::WorkerDict, "])
def test_nvlink_5_is_decoded(
    code: int, unit: str, fatal: str, words: str, reason: int, act: Act, process: str
) -> None:
    event = parse(
        f"NVRM: Xid (PCI:0018:01:00): {code}, {process}{unit} {fatal} XC0 i0 Link 13 "
        f"({words} 0x00000000 0x00000000)"
    )
    assert event is not None
    assert (event.device, event.code, event.xid.act) == ("0018:01:00", code, act)
    assert event.sub == f"{unit.partition('/')[0]}.{reason}"


def test_an_nvlink_line_that_is_cut_off_asks_for_the_recovery_action() -> None:
    event = parse(f"{GPU}149, NETIR Fatal XC0 i0 Link -1 (0x000fe406")
    assert event is not None
    assert (event.sub, event.xid.act) == ("", Act.NVLINK)


def test_a_link_that_went_down_says_where_to_look() -> None:
    event = parse(f"{GPU}149, NETIR_LINK_EVT Fatal XC0 i0 Link 01 (0x021425c6 0x00000000 0x0)")
    assert event is not None
    assert "link's other end" in event.xid.advice()
    assert "link 01" in event.xid.meaning


@pytest.mark.parametrize(
    ("line", "action", "advice"),
    [
        ("changed from 0x0 (None) to 0x4 (Drain and Reset)", 4, "reset the GPU"),
        ("changed from 0x4 (Drain and Reset) to 0x1 (GPU Reset Required)", 1, "reset the GPU"),
        ("changed from 0x0 (None) to 0x2 (Node Reboot Required)", 2, "reboot"),
        ("changed from 0x1 (GPU Reset Required) to 0x0 (None)", 0, ""),
        ("changed from 0x0 (None) to 0x1f (Something New)", 31, "what action 0x1f means"),
    ],
)
def test_the_recovery_action(line: str, action: int, advice: str) -> None:
    event = parse(f"NVRM: Xid (PCI:0009:01:00): 154, GPU recovery action {line}")
    assert event is not None
    assert (event.recovery, event.xid.act) == (action, Act.RECOVERY)
    assert advice in event.xid.advice()


def test_a_recovery_action_of_another_form_is_not_lost() -> None:
    event = parse("NVRM: Xid (PCI:0009:01:00): 154, who knows")
    assert event is not None
    assert event.xid.act is Act.WATCH


@pytest.mark.parametrize(
    ("line", "device", "code", "act"),
    [
        (
            "nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32 egress "
            "non-posted PRIV error (First)",
            "nvswitch3",
            12028,
            Act.WATCH,
        ),
        (
            "nvidia-nvswitch0: SXid (PCI:0000:00:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
            "nvswitch0",
            20034,
            Act.REBOOT,
        ),
        ("NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.", "0000:18:00", 79, Act.HOST),
        (
            "NVRM: The NVIDIA GPU 0000:18:00.0\nNVRM: (PCI ID: 10de:2901) installed in this system "
            "has\nNVRM: fallen off the bus and is not responding to commands.",
            "0000:18:00",
            79,
            Act.HOST,
        ),
        ("NVRM: Xid (0000:03:00): 13, Channel 00000001", "0000:03:00", 13, Act.APP),
        ("NVRM: Xid (PCI:0000:C4:00 GPU-I:05): 31, pid=9, name=a", "0000:c4:00", 31, Act.APP),
    ],
)
def test_other_forms(line: str, device: str, code: int, act: Act) -> None:
    event = parse(line)
    assert event is not None
    assert (event.device, event.code, event.xid.act) == (device, code, act)


@pytest.mark.parametrize(
    "line",
    [
        "nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): 20034, Data {0x50610002, 0x10100030}",
        "NVRM: Xid (invalid): some error",
        "NVRM: GPU at PCI:0000:3b:00: GPU-e11dfcca-7c93-959a-b8fd-5cfe0839b163",
        "NVRM: Xid error: xyz, invalid data",
        "mlx5_core 0000:18:00.0: firmware version: 28.43.2026",
    ],
)
def test_what_is_no_error(line: str) -> None:
    assert parse(line) is None


def test_the_driver_starts() -> None:
    assert driver_loaded("NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.95.05")
    assert not driver_loaded("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.")


def test_every_action_has_a_policy_and_every_failure_a_fix() -> None:
    assert set(RULES) == set(Act)
    for code, xid in XIDS.items():
        if RULES[xid.act].status is not Status.OK and xid.act is not Act.RECOVERY:
            assert xid.advice(), code
