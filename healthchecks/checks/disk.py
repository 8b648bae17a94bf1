"""Local disks: NVMe controllers and software RAID."""

from __future__ import annotations

import re
from typing import Annotated, Any

from healthchecks.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.context import Ctx
from healthchecks.kernel_signs import Sign, watch
from supervisor.core.setting import About

_FIX = "drain the node; read nvme list and dmesg, reseat or replace the disk"
_SIGNS = (
    Sign(
        name="disabled",
        needle="device after reset failure",
        pattern=r"nvme (nvme\d+): (?:Disabling|Removing) device",
        status=Status.FAIL,
        what="the disk did not come back from a reset",
        fix=_FIX,
        lasts=True,
    ),
    Sign(
        name="timeout",
        needle="timeout, ",
        pattern=r"nvme (nvme\d+): (?:I/O|I/O tag) .*timeout, (?:reset|disable|aborting)",
        status=Status.WARN,
        what="the disk did not answer in time",
        fix=_FIX,
    ),
    Sign(
        name="io_error",
        needle="I/O error, dev nvme",
        pattern=r"I/O error, dev (nvme\w+)",
        status=Status.WARN,
        what="the disk could not be read or written",
        fix=_FIX,
    ),
)


@check("nvme", tags={"preflight", "running"}, cohort=Status.WARN)
def nvme(
    ctx: Ctx,
    *,
    count: Annotated[
        int, About(doc="NVMe disks that the node should have; 0: as its cohort.", least=0)
    ] = 0,
    window_h: Annotated[
        float, About(doc="How long what is over is shown.", unit="h", least=0)
    ] = 24.0,
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
        if state != "live":
            model = ctx.maybe(f"sys/class/nvme/{disk}/model") or "unknown model"
            serial = ctx.maybe(f"sys/class/nvme/{disk}/serial") or "unknown serial"
            found.fail(
                f"its state is {state} ({model}, {serial})",
                expected="live",
                fix=_FIX,
                device=disk,
            )
    watch(ctx, _SIGNS, window_h * 3600, found)
    return found.result(f"{len(disks)} NVMe disks are live")


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
        head = re.match(r"(md\w+) : (\w+) ?(\([\w-]+\) )?(raid\d+|linear|multipath)?", block)
        if head is None:
            continue
        arrays += 1
        name, state, level = head[1], head[2], head[4] or ""
        if state != "active" or "(read-only)" in block.splitlines()[0]:
            found.fail(
                f"{state} {level}".strip(),
                expected="active",
                fix=f"mdadm --detail /dev/{name}; look for a disk that is gone",
                device=name,
            )
            continue
        members = re.search(r"\[(\d+)/(\d+)\] \[([U_]+)\]", block)
        failed = re.findall(r"(\w+)\[\d+\]\(F\)", block)
        if (members and members[1] != members[2]) or failed:
            found.add(
                Status.FAIL if level in ("raid0", "linear") else Status.WARN,
                (f"{members[2]} of {members[1]} members" if members else "a member failed")
                + (f", failed: {', '.join(failed)}" if failed else ""),
                expected="all members",
                fix=f"mdadm --detail /dev/{name}; replace the disk, mdadm --add",
                device=name,
            )
    if not arrays:
        raise Skip("no software RAID array")
    return found.result(f"{arrays} arrays are complete")


def _disks(ctx: Ctx, **_options: object) -> list[str]:
    import shutil

    disks = [name for name in ctx.names("sys/class/nvme") if re.fullmatch(r"nvme\d+", name)]
    if not disks:
        raise Skip("no NVMe disk")
    if shutil.which("nvme") is None:
        raise Skip("nvme-cli is not installed")
    return disks


@check(
    "nvme.smart",
    tags={"deep"},
    resource="command",
    each=_disks,
    deadline_s=20.0,
    untried="built against the output of nvme-cli 2.x, without a disk.",
)
def nvme_smart(
    ctx: Ctx,
    disk: str,
    *,
    used_percent: Annotated[
        int, About(doc="Share of the disk's life to warn at.", unit="%", least=1)
    ] = 100,
) -> Result:
    """NVMe disks report no critical warning, spare blocks left, and no new media errors.

    `nvme smart-log -o json`, fields of NVM Express 2.0, "SMART / Health Information".
    """
    import json

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
    if warning:
        found.fail(f"critical warning {warning:#x}", expected="0", fix=_FIX, device=disk)
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
    rise = ctx.memory.rise(f"media:{serial}", media)
    if rise and rise.by:
        found.warn(
            f"{rise.by:.0f} new media errors", expected="none", fix="replace the disk", device=disk
        )
    return found.result(f"{used} % of its life is used, {spare} % of its spare blocks are left")


def _number(value: Any) -> int:
    """nvme-cli gives some fields as {"value": n, …} where it is asked for more."""
    return int(value["value"] if isinstance(value, dict) else value)
