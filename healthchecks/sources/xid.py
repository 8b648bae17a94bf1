"""What an Xid means: one table of code, meaning and action, and how its line is read.

An Xid is the NVIDIA driver's word for a GPU error, an SXid that of an NVSwitch. Codes, names and
actions are those of NVIDIA's Xid catalog ("Analyzing Xid errors with the Xid catalog", buckets of
2025-10); where the published record of a B200 cluster (arXiv 2605.09370) differs, the line says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum

from healthchecks.frame.check import Status
from healthchecks.sources.recovery_actions import fix


class Act(StrEnum):
    """What is done about an Xid. Names follow the catalog's buckets."""

    IGNORE = "ignore"
    SOLO = "ignore unless alone"  # the trace of another error
    APP = "restart the application"  # never the GPU's failure, however often it comes
    WATCH = "look"
    REMAP = "row remapped"  # the flags of the remapper decide, not this line
    CONTAINED = "restart the application, once"
    NVLINK = "look at 154"  # the recovery action that the driver gives is decisive
    RESET = "reset the GPU"
    REBOOT = "reboot the node"
    HOST = "restart the host"
    SUPPORT = "call support"
    RECOVERY = "recovery action"  # 154


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRule:
    """How an action shows."""

    status: (
        Status  # of one event; a FAIL lasts until it is cured, checks/xid.py raises what repeats
    )
    fix: str = ""


_RESET = "drain the node and reset the GPU (nvidia-smi --gpu-reset); where it comes again, reboot"
RULES = {
    Act.IGNORE: ActionRule(status=Status.OK),
    Act.SOLO: ActionRule(
        status=Status.WARN,
        fix="look at what ended the application; where there is nothing, restart Fabric Manager",
    ),
    Act.APP: ActionRule(
        status=Status.WARN,
        fix="restart the application; where it comes again on this GPU, run dcgmi diag -r 3",
    ),
    Act.WATCH: ActionRule(
        status=Status.WARN, fix="watch this GPU, and ask NVIDIA where it comes again"
    ),
    Act.REMAP: ActionRule(status=Status.OK),
    Act.CONTAINED: ActionRule(
        status=Status.WARN,
        fix="restart the application; reset the GPU when it is idle, so that the row is remapped",
    ),
    Act.NVLINK: ActionRule(
        status=Status.WARN, fix="follow the recovery action of the GPU (Xid 154)"
    ),
    Act.RESET: ActionRule(status=Status.FAIL, fix=_RESET),
    Act.REBOOT: ActionRule(status=Status.FAIL, fix="drain the node and reboot it"),
    Act.HOST: ActionRule(
        status=Status.FAIL,
        fix=(
            "drain the node and power-cycle its host: in a passthrough VM a guest reboot may not "
            "bring the GPU back; seat and power of the board where it comes again"
        ),
    ),
    Act.SUPPORT: ActionRule(status=Status.FAIL, fix="drain the node and open a case with NVIDIA"),
    Act.RECOVERY: ActionRule(status=Status.FAIL),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Xid:
    """One code of the catalog."""

    act: Act
    meaning: str
    fix: str = ""  # where it is not the action's

    def advice(self) -> str:
        return self.fix or RULES[self.act].fix


_ROWS: tuple[tuple[Act, str, tuple[int, ...]], ...] = (
    (Act.APP, "GPU stopped processing", (8,)),
    (Act.APP, "invalid or corrupted push buffer", (11, 25, 32)),
    (Act.APP, "graphics engine exception", (13,)),
    (Act.APP, "GPU memory page fault", (31,)),
    (Act.APP, "copy engine exception", (39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136))),
    (Act.APP, "graphics engine class error", (69,)),
    (Act.APP, "corrupted data sent to the GPU", (80,)),
    (Act.APP, "media engine exception", (60, 68, 82, 83, 84, 86, 88, 89, *range(96, 106), 139)),
    (Act.SOLO, "channel torn down", (43, 45)),
    (Act.IGNORE, "driver firmware error", (37, 38)),
    (Act.IGNORE, "fault during a context switch", (44,)),
    (Act.IGNORE, "illegal access by the driver", (66, 67)),
    (Act.IGNORE, "test message", (14, 106, 107)),
    (Act.IGNORE, "C2C link error", (121,)),
    (Act.IGNORE, "NVLink access fault, which another Xid explains", (108, 137)),
    (Act.IGNORE, "CUDA fast path error", (141,)),
    (Act.IGNORE, "DLA error", (152, 153)),
    (Act.IGNORE, "channel retirement", (160, 161)),
    (Act.IGNORE, "power smoothing changed", (162, 163)),
    (Act.WATCH, "vGPU start error", (78,)),
    (Act.WATCH, "high rate of corrected ECC errors", (92,)),
    (Act.WATCH, "InfoROM wear limit exceeded", (93,)),
    (Act.WATCH, "CHI error", (159,)),
    (Act.WATCH, "power smoothing near or at its end of life", (164, 165)),
    (Act.REMAP, "row remapping event", (63,)),
    (Act.CONTAINED, "contained memory error", (94,)),
    (Act.RESET, "uncorrectable ECC error", (48,)),
    (Act.RESET, "uncorrectable DRAM error", (171,)),
    (Act.RESET, "uncorrectable SRAM error", (172,)),
    (Act.RESET, "row remapping failure", (64,)),
    (Act.RESET, "uncontained memory error", (95,)),
    (Act.RESET, "GPU stopped processing", (46,)),
    (Act.RESET, "microcontroller halt", (62,)),
    (Act.RESET, "context switch timeout", (109,)),
    (Act.RESET, "security fault", (110,)),
    (Act.RESET, "GSP RPC timeout", (119,)),
    (Act.RESET, "GSP error", (120,)),
    (Act.RESET, "link training failed", (136,)),
    (Act.RESET, "unrecovered ECC error", (140,)),
    (Act.RESET, "GPU initialization error", (143,)),
    (Act.RESET, "NVLink software defined error", (155,)),
    (Act.RESET, "resource retirement event", (156,)),
    (Act.RESET, "GPU fatal timeout", (158,)),
    (Act.RESET, "NVLink error", (74,)),
    (Act.HOST, "GPU has fallen off the bus", (79,)),
    (Act.REBOOT, "key rotation error", (151,)),
    (Act.SUPPORT, "auxiliary power is not connected", (54,)),
    (Act.SUPPORT, "resource retirement failure", (157,)),
    (Act.SUPPORT, "PCIe fatal timeout", (167,)),
    (Act.SUPPORT, "reduced GPU memory capacity", (168,)),
    # Of drivers since 580 (open-gpu-kernel-modules, nverror.h), not in the catalog: what they
    # ask for the driver says itself.
    (Act.SOLO, "channel reset, its process was ended", (174,)),
    (Act.NVLINK, "NVLink security error", (166, 170)),
    (Act.NVLINK, "SEC2 microcontroller halt", (169,)),
    (Act.NVLINK, "fatal failure of the C2C link", (173,)),
    (Act.NVLINK, "memory subsystem error", (175,)),
    (Act.NVLINK, "correctable PCIe errors", (176,)),
)
_ECC = (
    "drain the node and reset the GPU, then look at the row remapper and the SRAM threshold "
    "(superv check remap sram)"
)
_FIXES = {  # where it is not the action's
    48: _ECC,
    171: _ECC,
    172: _ECC,
    54: "drain the node and look at the power cables of the board",
    64: "drain the node and reset the GPU; replace it where remap.failed stays set",
    74: (
        "drain the node and reset the GPU; read the registers of the line by NVIDIA's workflow "
        "for Xid 74, and look at link and bridge where it comes again"
    ),
    78: "update driver and firmware",
    151: "drain the node and restart its VM",
}
XIDS = {
    code: Xid(act=act, meaning=meaning, fix=_FIXES.get(code, ""))
    for act, meaning, codes in _ROWS
    for code in codes
}
UNKNOWN = Xid(
    act=Act.WATCH,
    meaning="not in the catalog",
    fix="follow the recovery action of the GPU (nvidia-smi -q; superv check gpu.recovery_action); "
    "look the code up in NVIDIA's Xid catalog, and treat the GPU as suspect until then",
)

# NVLink 5: bits of the error status that ask for a reset, and those where Xid 154 decides. Bits
# that are in neither are to be ignored.
_LINK_BITS = {
    "SAW_MVB": (0x12, 0),
    "RLW_CTRL": (0, 0),
    "RLW_REMAP": (0xC0, 0x3F),
    "RLW_RSPCOL": (0x2, 0),
    "RLW_RXPIPE": (0, 0),
    "RLW_SRC_TRACK": (0x31, 0xC),
    "RLW_TAGSTATE": (0x120002, 0),
    "TLW_CTRL": (0x4, 0),
    "TLW_RX": (0x4, 0),
    "TLW_TX": (0x4, 0),
    "TREX": (0, 0),
    "NVLPW": (0, 0),
}
_MFDE_RESET = {1, 4, 5, 7}  # a number here, not bits
_LINK_DOWN_IGNORED = {38, 40}
_LINK_DOWN_FIX = {  # by reason: bits 20 to 25 of the first word
    **dict.fromkeys((2, 4, 10), "inspect the link's signal integrity"),
    **dict.fromkeys((15, 17, 22), "look at what was done to the fabric: software took it down"),
    **dict.fromkeys((16, 18), "look at what was done to the fabric, then at the link"),
    **dict.fromkeys((21, 32, 33, 34, 35, 36, 37), "inspect the device at the link's other end"),
    **dict.fromkeys((42, 43), "inspect link and cables"),
}


NO_CODE = 0  # of what the driver says without an Xid
DRIVER = "driver"  # the device of what it says of all GPUs


@dataclass(frozen=True, slots=True, kw_only=True)
class XidEvent:
    """One line of the kernel's log about a GPU or NVSwitch."""

    device: str  # address of the GPU, as 0000:3b:00, or name of the switch, as nvswitch0
    code: int
    sub: str = ""  # what tells events of one code apart
    xid: Xid
    pid: str = ""  # of the process, where the driver knows …
    program: str = ""  # … and its name: what its owner chose
    recovery: int | None = None  # of 154

    @property
    def name(self) -> str:
        if self.code == NO_CODE:
            return self.sub
        return f"{'SXid' if self.device.startswith('nvswitch') else 'Xid'} {self.code}" + (
            f" {self.sub}" if self.sub else ""
        )


# From the beginning of the line: a program may be called `NVRM: Xid (PCI:`, and no more.
_BDF = r"((?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2})"
_XID = re.compile(
    rf"NVRM: Xid \((?:PCI:)?{_BDF}(?:\.\d)?(?: GPU-I:\d+)?\): (\d+)(?:, (.*))?\Z", re.DOTALL
)
_SXID = re.compile(rf"nvidia-(nvswitch\d+): SXid \((?:PCI:)?{_BDF}\.\d\): (\d+), (.*)", re.DOTALL)
_SEVERITY = re.compile(r"(Fatal|Non-fatal), (.*)", re.DOTALL)
# Lines that follow another with its registers: "Severity 1 Engine instance 30 …", "Data {0x…".
_REGISTERS = re.compile(r"(?:Severity \d|Data \{|SOE HALT data|[\w ]*\[\d+\] = 0x)")
_SXIDS_WITHOUT = {  # by code, those that say no severity (ctrl_dev_nvswitch.h of the open driver)
    10004: Act.WATCH,  # too hot
    10005: Act.IGNORE,  # no longer
    10006: Act.REBOOT,  # shut down for heat
    28001: Act.WATCH,  # an OSFP module is warm
    28002: Act.IGNORE,
    28003: Act.WATCH,
    28004: Act.IGNORE,
    28005: Act.REBOOT,
}
_SOE = range(26000, 27000)  # the switch's own controller
# What ends a driver without an Xid: the whole line from its beginning, and what it means.
_DRIVER_LINES = (
    (  # kernel-open/nvidia/nv.c, arch/nvalloc/unix/src/osinit.c; with `NVRM: ` alone before 390
        re.compile(
            rf"NVRM: (?:GPU )?{_BDF}\.\d: (?:RmInitAdapter failed! \(0x|rm_init_adapter failed, )"
        ),
        "RmInitAdapter",
        Xid(act=Act.REBOOT, meaning="the driver could not start this GPU"),
    ),
    (  # src/nvidia/src/kernel/rmapi/nv_gpu_ops.c, nvGpuOpsReportFatalError
        re.compile(
            r"NVRM: (?:nvGpuOpsReportFatalError: )?uvm encountered global fatal error "
            r"0x()[\da-f]+, "
            r"requiring os reboot"
        ),
        "UVM",
        Xid(act=Act.REBOOT, meaning="unified memory failed for good: the driver wants a reboot"),
    ),
    (  # src/nvidia/src/kernel/gpu/gsp: the GPU's own processor does not come up
        re.compile(rf"NVRM: (?:GPU )?{_BDF}\.\d: (?:_?kgsp\w+: )?unexpected WPR2 already up"),
        "GSP",
        Xid(act=Act.REBOOT, meaning="the GPU's system processor could not be started"),
    ),
)
_OFF_BUS = re.compile(
    rf"NVRM: (?:The NVIDIA )?GPU (?:at )?(?:PCI:)?{_BDF}\.0[ :\n].*fallen off the bus", re.DOTALL
)
_ERROR_STRING = re.compile(r"errorString:? ([A-Za-z][\w /-]*)")
# Drivers before 450 name no process, before 510 only its number; "pid='<unknown>'" of none.
_PROCESS = re.compile(r"pid='?(\d+)'?(?:, name=(.{1,15}?))?(?:, |\Z)", re.DOTALL)
_LINK = re.compile(
    r"([A-Z][A-Z0-9_]+(?:/[A-Z0-9_]+)?)\s+(Nonfatal|Fatal)\s+XC\d\s+i\d+\s+Link\s+(-?\d+)\s+"
    r"\((0x[0-9a-fA-F]+)\s+(0x[0-9a-fA-F]+)"
)
_ACTION = re.compile(
    r"recovery action changed from 0x\w+ \([^)]*\) to (0x[0-9a-fA-F]+) \(([^)]*)\)"
)


def driver_loaded(line: str) -> bool:
    """The driver restarts, which resets all GPUs."""
    return line.startswith("NVRM: loading NVIDIA")


def parse(line: str) -> XidEvent | None:
    """Read a line; None where it is no Xid, no SXid and no lost GPU."""
    if match := _XID.match(line):
        address, code, rest = match[1].lower(), int(match[2]), match[3] or ""
        pid, program = _process(rest)
        if 144 <= code <= 150:
            sub, xid = _link(code, rest)
            return XidEvent(device=address, code=code, sub=sub, xid=xid)
        if code == 154:
            return _recovery(address, rest)
        xid = _caused(code, rest)
        return XidEvent(device=address, code=code, xid=xid, pid=pid, program=program)
    if match := _SXID.match(line):
        return _switch(match[1], int(match[3]), match[4])
    for regex, name, xid in _DRIVER_LINES:
        if match := regex.match(line):
            device = _whole(match[1]) if match[1] else DRIVER
            return XidEvent(device=device, code=NO_CODE, sub=name, xid=xid)
    if match := _OFF_BUS.match(line):
        return XidEvent(device=_whole(match[1]), code=79, xid=XIDS[79])
    return None


def _process(rest: str) -> tuple[str, str]:
    """The number and the name of the process that the driver names; empty where it knows none."""
    found = _PROCESS.match(rest)
    name = (found[2] or "") if found else ""
    return (found[1] if found else "", "" if name == "<unknown>" else name)


def _caused(code: int, rest: str) -> Xid:
    """What a code means; of a channel that was torn down (43, 45) also why, where the line says so:
    newer drivers add "errorString CTX SWITCH TIMEOUT, Info 0x…"."""
    xid = XIDS.get(code, UNKNOWN)
    cause = _ERROR_STRING.search(rest) if xid.act is Act.SOLO else None
    if cause is None:
        return xid
    return replace(
        xid,
        meaning=f"{xid.meaning}: {cause[1].strip()}",
        fix="look for what caused it: " + cause[1],
    )


def _whole(address: str) -> str:
    """With the PCI domain that older drivers leave out."""
    address = address.lower()
    return address if address.count(":") == 2 else f"0000:{address}"


def _recovery(address: str, rest: str) -> XidEvent:
    match = _ACTION.search(rest)
    if match is None:
        return XidEvent(device=address, code=154, xid=UNKNOWN)
    action = int(match[1], 16)
    return XidEvent(
        device=address,
        code=154,
        recovery=action,
        xid=Xid(act=Act.RECOVERY, meaning=f"recovery action is now {match[2]}", fix=fix(action)),
    )


def _switch(name: str, code: int, rest: str) -> XidEvent | None:
    """An SXid: what it says of its severity, else what its code means."""
    severity = _SEVERITY.match(rest)
    if severity is None and _REGISTERS.match(rest):
        return None  # the registers of the line before
    text = severity[2] if severity else rest
    if severity:
        act = Act.REBOOT if severity[1] == "Fatal" else Act.WATCH
    else:
        act = _SXIDS_WITHOUT.get(code, Act.REBOOT if code in _SOE else Act.WATCH)
    word = f"{severity[1].lower()} " if severity else ""
    return XidEvent(
        device=name,
        code=code,
        xid=Xid(
            act=act,
            meaning=f"NVSwitch {word}error: {text}".rstrip(": \n"),
            fix="drain the node and reset all its GPUs and switches, or reboot it"
            if act is Act.REBOOT
            else "watch the link; look at it where it comes again",
        ),
    )


def _link(code: int, rest: str) -> tuple[str, Xid]:
    """Xid 144 to 150: the unit, the reason and the error status decide."""
    match = _LINK.search(rest)
    if match is None:
        return "", Xid(act=Act.NVLINK, meaning="NVLink error")
    unit, fatal, link = match[1], match[2] == "Fatal", match[3]
    reason, status = int(match[4], 16) >> 20 & 0x3F, int(match[5], 16)
    sub = f"{unit.partition('/')[0]}.{reason}"
    act = _link_act(code, unit, reason, status, fatal=fatal)
    meaning = f"NVLink error, link {link}, {match[2].lower()}, status {status:#x}"
    fix = ""
    if act is Act.RESET:
        fix = RULES[Act.RESET].fix
        more = _LINK_DOWN_FIX.get(reason, "") if unit.startswith("NETIR_LINK") else ""
        fix += f"; then {more}" if more else "; then inspect the link and its peer"
    return sub, Xid(act=act, meaning=meaning, fix=fix)


def _link_act(code: int, unit: str, reason: int, status: int, *, fatal: bool) -> Act:
    if unit.startswith("NETIR_LINK"):
        return Act.IGNORE if reason in _LINK_DOWN_IGNORED else Act.RESET
    if unit.startswith("NETIR_BER"):
        return Act.WATCH  # the catalog ignores it for the moment and has link and cable inspected
    if unit.startswith("NETIR_MFDE"):
        return Act.RESET if status in _MFDE_RESET or fatal else Act.IGNORE
    known = next((bits for name, bits in _LINK_BITS.items() if unit.startswith(name)), None)
    if known is None:  # NETIR, MSE_WATCHDOG and what the catalog has not
        return Act.RESET if fatal or code == 150 else Act.NVLINK
    reset, follow = known
    if status & reset:
        return Act.RESET
    if status & follow:
        return Act.NVLINK
    return Act.NVLINK if fatal else Act.IGNORE
