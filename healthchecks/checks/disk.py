"""Local disks: NVMe controllers and software RAID."""

from __future__ import annotations

import re
from typing import Annotated, Any

from healthchecks.frame.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources.kernel_patterns import (
    KernelLogPattern,
    WindowH,
    Wording,
    report_matches,
)
from healthchecks.sources.wordings_disk import BLOCK_ERRORS, NO_DATA
from supervisor.core.setting import About

_FIX = "drain the node; read nvme list and dmesg, reseat or replace the disk"
_PATTERNS = (
    KernelLogPattern(
        name="disabled",
        wordings=(
            Wording(
                source="Linux 6.1, drivers/nvme/host/pci.c nvme_reset_work",
                substring="device after reset failure",
                regex=r"nvme (nvme\d+): (?:Disabling|Removing) device after reset failure",
                example="nvme nvme0: Disabling device after reset failure: -19",
            ),
            Wording(
                source="Linux 4.8 to 6.0, nvme_remove_dead_ctrl; before 5.17 without `probe "
                "failure`",
                substring="Removing after probe failure",
                regex=r"nvme (nvme\d+): Removing after probe failure",
                example="nvme nvme0: Removing after probe failure status: -19",
            ),
            Wording(
                source="Linux 5.0, drivers/nvme/host/core.c nvme_wait_ready",
                substring="Device not ready; aborting",
                regex=r"nvme (nvme\d+): Device not ready; aborting (?:reset|initiali[sz]|shutdown)",
                example="nvme nvme0: Device not ready; aborting reset, CSTS=0x1",
            ),
        ),
        status=Status.FAIL,
        what="the disk did not come back from a reset",
        fix=_FIX,
        until_boot=True,
    ),
    KernelLogPattern(
        name="down",
        wordings=(
            Wording(
                source="Linux 4.12, drivers/nvme/host/pci.c nvme_warn_reset",
                substring="controller is down; will reset",
                regex=r"nvme (nvme\d+): controller is down; will reset: CSTS=0x[\da-f]+",
                example="nvme nvme0: controller is down; will reset: CSTS=0xffffffff, "
                "PCI_STATUS=0xffff",
            ),
            Wording(
                source="Linux 4.4 to 4.11, nvme_kthread",
                substring="Failed status: ",
                regex=r"nvme (nvme\d+): Failed status: (?:0x)?[\da-f]+, reset controller",
                example="nvme nvme0: Failed status: 0x3, reset controller",
            ),
            Wording(
                source="Linux 4.x to 6.12, drivers/nvme/host/pci.c nvme_error_detected",
                substring="frozen state error detected",
                regex=r"nvme (nvme\d+): frozen state error detected, reset controller",
                example="nvme nvme0: frozen state error detected, reset controller",
            ),
            Wording(
                source="Linux 6.0, drivers/nvme/host/core.c nvme_handle_aer_persistent_error",
                substring="resetting controller due to ",
                regex=r"nvme (nvme\d+): resetting controller due to (?:AER|persistent internal)",
                example="nvme nvme0: resetting controller due to AER",
            ),
        ),
        status=Status.WARN,
        what="the disk's controller went down and was reset",
        fix=_FIX,
    ),
    KernelLogPattern(
        name="timeout",
        wordings=(
            Wording(
                source="Linux 4.4 to 6.10, drivers/nvme/host/pci.c nvme_timeout; of fabrics "
                "(tcp.c, rdma.c) without what is done",
                substring=" timeout",
                regex=r"nvme (nvme\d+): I/O (?:tag )?\d+ (?:[^\[\]]* )?QID \d+ timeout"
                r"(?:, (?:reset|disable|aborting|completion polled)|\Z)",
                example="nvme nvme0: I/O tag 12 (100c) opcode 0x2 (Read) QID 3 timeout, aborting "
                "req_op:READ(0) size:4096",
            ),
        ),
        status=Status.WARN,
        what="the disk did not answer in time",
        fix=_FIX,
    ),
    KernelLogPattern(
        name="io_error",
        wordings=(
            Wording(
                source="Linux 5.16, block/blk-mq.c blk_print_req_error",
                substring=" error, dev nvme",
                regex=BLOCK_ERRORS + NO_DATA + r"(nvme\w+), sector \d",
                example="critical medium error, dev nvme0n1, sector 0 op 0x0:(READ) flags 0x80700",
            ),
            Wording(
                source="Linux 4.x to 5.15, block/blk-core.c print_req_error",
                substring=" error, dev nvme",
                regex=r"(?:blk_update_request|print_req_error): "
                + BLOCK_ERRORS
                + NO_DATA
                + r"(nvme\w+), sector \d",
                example="blk_update_request: I/O error, dev nvme0n1, sector 1234 op 0x0:(READ)",
            ),
            Wording(
                source="Linux 3.x to 6.12, fs/buffer.c buffer_io_error",
                substring="Buffer I/O error on dev",
                regex=r"Buffer I/O error on dev(?:ice)? (nvme\w+), logical block \d",
                example="Buffer I/O error on dev nvme0n1p1, logical block 0, async page read",
            ),
            Wording(
                source="Linux 5.17, drivers/nvme/host/core.c nvme_log_error",
                substring=" (sct 0x",
                regex=r"(nvme\d+(?:c\d+)?n\d+): [\w /-]+\(0x[\da-f]+\) @ LBA \d+, \d+ blocks, .*"
                r"\(sct 0x[\da-f]+ / sc 0x[\da-f]+\)",
                example="nvme0n1: Read(0x2) @ LBA 2048, 8 blocks, Unrecovered Read Error (sct "
                "0x2 / sc "
                "0x81) DNR",
            ),
        ),
        status=Status.WARN,
        what="the disk could not be read or written",
        fix=_FIX,
    ),
)


_PASSING = ("new", "resetting", "connecting")  # nvme_sysfs_show_state of linux/drivers/nvme/host


@check("nvme", tags={"preflight", "running"}, cohort=Status.WARN)
def nvme(
    ctx: Ctx,
    *,
    count: Annotated[
        int, About(doc="NVMe disks that the node should have; 0: as its cohort.", ge=0)
    ] = 0,
    window_h: WindowH = 24.0,
    lasts_s: Annotated[
        float, About(doc="How long a disk may reset or connect.", unit="s", ge=0)
    ] = 60.0,
) -> Result:
    """All NVMe disks are there and live.

    /sys/class/nvme/*/state; resets and I/O errors in the kernel's log, as leptonai/gpud.
    """
    found = Findings()
    disks = [name for name in ctx.names("sys/class/nvme") if re.fullmatch(r"nvme\d+", name)]
    if not disks and not count:
        raise Skip("no NVMe disk")
    found.fact("disks", len(disks))
    if len(disks) < count:
        found.fail(
            f"{len(disks)} NVMe disks",
            expected=f"{count}",
            fix="look for the others on PCI; reseat",
        )
    for disk in disks:
        state = ctx.text(f"sys/class/nvme/{disk}/state")
        lasted_s = ctx.memory.lasted_s(f"not live:{disk}", state != "live")
        if state != "live":
            model = ctx.maybe(f"sys/class/nvme/{disk}/model") or "unknown model"
            serial = ctx.maybe(f"sys/class/nvme/{disk}/serial") or "unknown serial"
            passes = state in _PASSING and lasted_s < lasts_s
            found.add(
                Status.WARN if passes else Status.FAIL,
                f"its state is {state} ({model}, {serial})",
                expected="live",
                fix=_FIX,
                device=disk,
            )
    report_matches(ctx, _PATTERNS, window_h * 3600, found)
    return found.result(f"{len(disks)} NVMe disks are live")


# A container of Intel VROC (imsm) or DDF is a bag of disks that is never active; its arrays, which
# name it, are listed by themselves (linux/drivers/md/md.c, md_seq_show).
_CONTAINER = re.compile(r"super external:(?!/)")
_HEAD = re.compile(r"(md\S+) : (\w+) ?(\([\w-]+\) )?(raid\d+|linear|multipath|faulty)?")
# raid0 and linear lose all with one member; raid1 to raid10 go on with less.
_FRAGILE = ("raid0", "linear")


@check("md", tags={"preflight", "running"})
def md(ctx: Ctx) -> Result:
    """Software RAID arrays are complete.

    /proc/mdstat: an inactive array or a failed RAID 0 is FAIL, a missing member WARN.
    """
    text = ctx.maybe("proc/mdstat")
    if text is None:
        raise Skip("no software RAID in this kernel")
    found = Findings()
    arrays = 0
    for block in re.split(r"\n(?=md)", text):
        head = _HEAD.match(block)
        if head is None:
            if block.startswith("md"):
                found.unknown(f"/proc/mdstat has a line that is none: {block.splitlines()[0][:60]}")
            continue
        if _CONTAINER.search(block):
            continue
        arrays += 1
        _array(found, block, *head.group(1, 2, 4))
    if not arrays and found.result("").status is Status.OK:
        raise Skip("no software RAID array")
    return found.result(f"{arrays} arrays are complete")


def _array(found: Findings, block: str, name: str, state: str, level: str | None) -> None:
    fix = f"mdadm --detail /dev/{name}; look for a disk that is gone"
    if state != "active" or "(read-only)" in block.splitlines()[0]:
        seen = f"{state} {level or ''}".strip()
        found.fail(seen, expected="active", fix=fix, device=name)
        return
    members = re.search(r"\[(\d+)/(\d+)\] \[([U_]+)\]", block)
    failed = re.findall(r"(\S+?)\[\d+\](?:\([A-Z]\))*\(F\)", block)
    if (members and members[1] != members[2]) or failed:
        found.add(
            Status.FAIL if level in _FRAGILE else Status.WARN,
            (f"{members[2]} of {members[1]} members" if members else "a member failed")
            + (f", failed: {', '.join(failed)}" if failed else ""),
            expected="all members",
            fix=f"mdadm --detail /dev/{name}; replace the disk, mdadm --add",
            device=name,
        )


def _disks(ctx: Ctx, **_options: object) -> list[str]:
    disks = [name for name in ctx.names("sys/class/nvme") if re.fullmatch(r"nvme\d+", name)]
    if not disks:
        raise Skip("no NVMe disk")
    return disks


# Bits of the critical warning (NVM Express 2.0, SMART / Health Information, byte 0).
_WARNINGS = {
    0: (Status.FAIL, "few spare blocks are left", _FIX),
    1: (Status.WARN, "its temperature", "look at air flow and fans around the disk"),
    2: (Status.FAIL, "it is unreliable after media or internal errors", _FIX),
    3: (Status.FAIL, "it is read-only", _FIX),
    4: (Status.FAIL, "its backup of volatile memory failed", _FIX),
    5: (Status.FAIL, "its persistent memory is read-only or unreliable", _FIX),
}


@check(
    "nvme.smart",
    tags={"deep"},
    resource="command",
    targets=_disks,
    deadline_s=20.0,
    untested="built against the output of nvme-cli 2.x, without a disk.",
)
def nvme_smart(
    ctx: Ctx,
    disk: str,
    *,
    used_percent: Annotated[
        int, About(doc="Share of the disk's life to warn at.", unit="%", ge=1)
    ] = 100,
) -> Result:
    """NVMe disks report no critical warning, spare blocks left, and no new media errors.

    `nvme smart-log -o json`, fields of NVM Express 2.0, "SMART / Health Information".
    """
    import json
    import shutil

    if shutil.which("nvme") is None:
        raise Skip("nvme-cli is not installed")
    done = ctx.command("nvme", "smart-log", "-o", "json", f"/dev/{disk}", deadline_s=15.0)
    if done.rc != 0:
        raise Unknown(done.why())
    try:
        log = json.loads(done.out)
        warning = _number(log["critical_warning"])
        spare, least = _number(log["avail_spare"]), _number(log["spare_thresh"])
        used = _number(log.get("percent_used", log.get("percentage_used")))
        media = _number(log["media_errors"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unknown(f"nvme smart-log printed something else: {error!r}") from None
    found = Findings()
    found.metric("used", used, "%")
    found.metric("spare", spare, "%")
    found.metric("media_errors", media)
    for bit, (status, text, fix) in _WARNINGS.items():
        if warning >> bit & 1:
            found.add(
                status,
                f"critical warning {1 << bit:#x}: {text}",
                expected="none",
                fix=fix,
                device=disk,
            )
    if unknown := warning & ~sum(1 << bit for bit in _WARNINGS):
        found.warn(f"critical warning {unknown:#x}", expected="0", fix=_FIX, device=disk)
    if spare < least:
        found.fail(
            f"{spare} % of its spare blocks are left", expected=f"{least} %", fix=_FIX, device=disk
        )
    if used >= used_percent:
        found.warn(
            f"{used} % of its life is used",
            expected=f"less than {used_percent} %",
            fix="replace the disk at the next service",
            device=disk,
        )
    serial = ctx.maybe(f"sys/class/nvme/{disk}/serial") or disk
    delta = ctx.memory.counter_delta(f"media:{serial}", media)
    if delta is None and media:
        found.not_yet("first look: are its media errors new?")
    elif delta and delta.by:
        found.warn(
            f"{delta.by:.0f} new media errors", expected="none", fix="replace the disk", device=disk
        )
    return found.result(f"{used} % of its life is used, {spare} % of its spare blocks are left")


def _number(value: Any) -> int:
    """nvme-cli gives some fields as {"value": n, …} where it is asked for more."""
    return int(value["value"] if isinstance(value, dict) else value)
