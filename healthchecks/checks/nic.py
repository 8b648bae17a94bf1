"""NICs as devices: all there, of one firmware, with clean cables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Annotated, Any

from healthchecks.frame.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources.pci import ETHERNET, PCI
from healthchecks.sources.ports import (
    NET,
    SYS,
    Ignore,
    Port,
    nic_functions,
    ports,
    traffic_ports,
)
from supervisor.core.setting import About

_UNPLUGGED = "1024"  # mlxlink's status opcode of a port without a cable
_GUEST_DRIVERS = ("vfio-pci", "pci-stub", "pciback", "uio_pci_generic", "igb_uio")


@check("ib.missing", tags={"preflight", "running"}, cohort=Status.FAIL)
def ib_missing(
    ctx: Ctx,
    *,
    fabric: Annotated[
        int, About(doc="Fabric ports of this node; 0: those seen before and on its peers.")
    ] = 0,
    storage: Annotated[
        int, About(doc="Storage ports of this node; 0: those seen before and on its peers.")
    ] = 0,
) -> Result:
    """Every NIC that this node had is there, and has its RDMA device.

    What was seen is remembered by PCI address beyond a boot (NVIDIA/NVSentinel keeps such a
    baseline; a NIC that is gone shows no port that could be down). `superv accept` forgets it.
    """
    found = Findings()
    before: dict[str, str] = dict(ctx.memory.get("nics") or {})
    functions = nic_functions(ctx)
    try:
        seen = ports(ctx)
    except (Skip, Unknown):
        seen = []
    if not (functions or seen or before or fabric or storage):
        raise Skip("no RDMA device, and none was here before")
    now = {p.bdf or p.device: f"{p.role} port {p.device}" for p in seen}
    for bdf in sorted(functions.keys() | before.keys()):
        if bdf in now:
            continue
        what = before.get(bdf, "ConnectX function")
        if functions.get(bdf):
            found.unknown(f"{functions[bdf]} shows no port", device=bdf)
            continue
        gone = bdf not in functions
        if not gone and bdf not in before and _needs_none(ctx, bdf, functions):
            continue
        found.fail(
            f"{what} at {bdf} is " + ("gone from PCI" if gone else "on PCI and has no RDMA device"),
            expected="present, as when it was last seen" if bdf in before else "an RDMA device",
            fix="look in the kernel log for its PCI address; reboot, then power cycle the host"
            if gone
            else f"journalctl -k | grep {bdf}; reload mlx5_core and mlx5_ib, or reboot",
            device=bdf,
        )
    counts = {role: sum(p.role == role for p in seen) for role in ("fabric", "storage", "lpf")}
    for role, wanted in (("fabric", fabric), ("storage", storage)):
        if wanted and counts[role] < wanted:
            found.fail(
                f"{counts[role]} {role} ports",
                expected=f"{wanted} {role} ports",
                fix="lspci -d 15b3: shows what the host gives; reboot, then ask for the hardware",
            )
    for role, count in counts.items():
        found.fact(f"{role}_ports", count)
    if not any(p.guess for p in seen):
        ctx.memory.put("nics", before | now, lasting=True)
    return found.result(", ".join(f"{n} {role}" for role, n in counts.items() if n) + " ports")


def _needs_none(ctx: Ctx, bdf: str, functions: Mapping[str, str]) -> bool:
    """Whether a network function that never had an RDMA device of its own may do without.

    A virtual function of this host; one that a driver for guests holds; one in a bond, whose RDMA
    device is that of a sibling on its card (drivers/infiniband/hw/mlx5, LAG); an Ethernet port
    while no port of its kind here has one.
    """
    at = f"{PCI}/{bdf}"
    driver = ctx.path(f"{at}/driver")
    if ctx.path(f"{at}/physfn").exists() or driver.resolve().name in _GUEST_DRIVERS:
        return True
    card = bdf.rpartition(".")[0]
    siblings = [f for f in functions if f.rpartition(".")[0] == card and f != bdf]
    if any(ctx.path(f"{NET}/{name}/master").exists() for name in ctx.names(f"{at}/net")):
        return any(functions[sibling] for sibling in siblings)
    ethernet = ctx.text(f"{at}/class").startswith(ETHERNET)
    alike = [f for f in functions if ctx.maybe(f"{PCI}/{f}/device") == ctx.maybe(f"{at}/device")]
    return ethernet and not any(functions[f] for f in alike)


@check("nic.fw", tags={"preflight"}, cohort=Status.WARN)
def nic_fw(ctx: Ctx, *, ignore: Ignore = ()) -> Result:
    """NICs of one role and board have one firmware, within the node and over its cohort.

    A single card of another board among many of its model is odd too. As facebookresearch/gcm's
    manifest and imbue-ai's host checks compare; without golden values.
    """
    found = Findings()
    kinds: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    ports = traffic_ports(ctx, ignore=ignore)
    boards = {port.model for port in ports if port.board}
    for port in ports:
        for what in ("fw_ver", "board_id"):
            value = ctx.maybe(f"{SYS}/{port.device}/{what}")
            if not value and (what == "fw_ver" or port.model in boards):
                found.unknown(f"shows no {what}", device=port.device)
            elif value:
                of = (port.role, port.model if what == "board_id" else port.kind, what)
                devices = kinds.setdefault(of, {}).setdefault(value, [])
                if port.device not in devices:
                    devices.append(port.device)
    facts: dict[str, set[str]] = {}
    for (role, _, what), by_value in kinds.items():
        facts.setdefault(f"{role}_{what}", set()).update(by_value)
        if len(by_value) > 1:
            usual = max(by_value, key=lambda value: len(by_value[value]))
            for value, devices in by_value.items():
                if what == "board_id" and 3 * len(devices) > len(by_value[usual]):
                    continue  # two kinds of cards, not one odd card
                if value != usual:
                    found.warn(
                        f"{what} {value}",
                        expected=f"{usual}, as the other {role} ports",
                        fix="flash the cohort's firmware with mlxfwmanager, then reboot"
                        if what == "fw_ver"
                        else "a board of another kind: ask for the right one",
                        device=", ".join(devices),
                    )
    for name, values in facts.items():
        found.fact(name, ", ".join(sorted(values)))
    shown = [f"{role} {what} {', '.join(values)}" for (role, _, what), values in kinds.items()]
    return found.result("; ".join(shown))


@check(
    "ib.cable",
    tags={"deep"},
    resource="mlxlink",
    deadline_s=60.0,
    drains=False,
    untested="written against the JSON and text of mlxlink (MFT and mstflint documentation); no "
    "ConnectX NIC was available.",
)
def ib_cable(
    ctx: Ctx,
    *,
    ignore: Ignore = (),
    raw_ber: Annotated[float, About(doc="Raw bit error rate that is tolerated.")] = 1e-5,
    effective_ber: Annotated[
        float, About(doc="Bit error rate after error correction that is tolerated.")
    ] = 1e-12,
) -> Result:
    """Cables and transceivers carry bits with few errors, within their temperatures.

    `mlxlink -m -c -e`. Links of four levels (PAM4, 100 Gb/s a lane) live by error correction: raw
    1e-5 is the limit of a cloud for such nodes; 1e-12 after correction the IBTA's; module
    temperatures are held to the range that the module itself names. A cable that is not plugged in
    is a warning.
    """
    tool = next((t for t in ("mlxlink", "mstlink") if shutil.which(t)), None)
    found_ports = traffic_ports(ctx, ignore=ignore)
    if tool is None:
        raise Skip("neither mlxlink (MFT) nor mstlink (mstflint) is installed")
    found = Findings()
    for port in found_ports:
        device = port.bdf or port.device
        done = ctx.command(tool, "-d", device, "-m", "-c", "-e", "--json", deadline_s=10.0)
        values = _link_values(done.out)
        if not values:
            why = done.err.strip().splitlines() or done.out.strip().splitlines() or ["no text"]
            found.unknown(f"{tool} says: {why[-1][:100]}", device=port.name)
            continue
        _cable(found, port, values, raw_ber, effective_ber)
    return found.result(f"{len(found_ports)} links below the limits")


def _cable(
    found: Findings, port: Port, values: Mapping[str, str], raw_ber: float, effective_ber: float
) -> None:
    opcode = values.get("Status Opcode", "0")
    if opcode == _UNPLUGGED:
        advice = values.get("Recommendation") or "the cable is unplugged"
        fix = "plug it in; where the port is not used: ports: {ignore: […]} in site.yaml"
        found.warn(f"unplugged ({advice})", expected="a cable", fix=fix, device=port.name)
        return
    measured = 0
    for what, most in (("Raw Physical BER", raw_ber), ("Effective Physical BER", effective_ber)):
        rate = _float(values.get(what))
        if rate is None:
            continue
        measured += 1
        found.metric(f"{port.name}.{what.split()[0].lower()}_ber", rate)
        if rate > most:
            found.warn(
                f"{what} {rate:g}",
                expected=f"at most {most:g}",
                fix=f"clean and reseat the cable ({_part(values)}), then replace it",
                device=port.name,
            )
    if not measured and opcode in ("0", "N/A"):
        found.unknown("shows no bit error rate", device=port.name)
    degrees, _, limits = values.get("Temperature [C]", "").partition("[")
    now, high = _float(degrees), _float(limits.rstrip("]").partition("..")[2])
    if now is not None:
        found.metric(f"{port.name}.temperature", now, "°C")
        if high is not None and now >= high:
            found.warn(
                f"transceiver at {now:g} °C",
                expected=f"below {high:g} °C",
                fix="look at the fans and the air flow at the port",
                device=port.name,
            )
    if opcode not in ("0", "N/A"):
        found.warn(
            f"mlxlink: {values.get('Recommendation') or f'opcode {opcode}'}",
            fix="do as it says",
            device=port.name,
        )


def _part(values: Mapping[str, str]) -> str:
    part, serial = values.get("Vendor Part Number", ""), values.get("Vendor Serial Number", "")
    return f"part {part}, serial {serial}" if part or serial else "its part number is not shown"


def _float(text: str | None) -> float | None:
    try:
        return float((text or "").split()[0])
    except (ValueError, IndexError):
        return None


def _link_values(text: str) -> dict[str, str]:
    """mlxlink's fields by name, from its JSON or, of older versions, from `name : value` lines."""
    try:
        document = json.loads(text)
    except ValueError:
        pairs = (line.partition(" : ") for line in text.splitlines())
        return {name.strip(): value.strip() for name, colon, value in pairs if colon}
    return _leaves(document)


def _leaves(document: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in document.items() if isinstance(document, dict) else ():
        if isinstance(value, dict) and "values" not in value:
            found |= _leaves(value)
        elif isinstance(value, str | int | float):
            found[name] = str(value)
    return found
