"""Health checks of how the node's ranks are reached: NCCL's interfaces and the node's name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources import topology
from supervisor.core.setting import About


@check("nccl.interfaces", tags={"preflight"})
def nccl_interfaces(
    ctx: Ctx,
    *,
    socket_ifname: Annotated[
        str, About(doc="NCCL_SOCKET_IFNAME of the job, with its ^ and =; several with commas.")
    ] = "",
) -> Result:
    """The interfaces that NCCL_SOCKET_IFNAME names are there, up, and have an address.

    Names are prefixes unless = comes first, ^ turns the choice round (NCCL User Guide). One that is
    missing ends in an obscure bootstrap failure on this node only (NVIDIA/nccl#1837, #286).
    """
    if not socket_ifname:
        raise Skip("no NCCL_SOCKET_IFNAME is configured (nccl.interfaces.socket_ifname)")
    there = ctx.names("sys/class/net")
    if not there:
        raise Unknown("/sys/class/net shows no interface")
    found = Findings()
    chosen = chosen_interfaces(socket_ifname, there)
    if not chosen:
        found.fail(
            f"NCCL_SOCKET_IFNAME={socket_ifname} fits none of {', '.join(there)}",
            expected="the management interface",
            fix="see `ip -br addr` here and on a good node; name interfaces alike everywhere",
        )
    addressed = _addressed(ctx)
    for name in chosen:
        state = ctx.maybe(f"sys/class/net/{name}/operstate") or ""
        fix = f"ip link set {name} up; look for its link in the kernel log"
        if state not in ("up", "unknown"):
            found.fail(f"is {state or 'gone'}", expected="up", fix=fix, device=name)
        elif name not in addressed:
            found.fail(
                "has no address",
                expected="an IPv4 or global IPv6 address",
                fix=f"see `ip addr show {name}` and the node's network configuration",
                device=name,
            )
    return found.result(", ".join(chosen))


def chosen_interfaces(spec: str, there: Iterable[str]) -> list[str]:
    """Those that NCCL would consider."""
    names = spec.lstrip("^=").split(",")
    exact = spec.lstrip("^").startswith("=")

    def fits(name: str) -> bool:
        return any(name == n if exact else name.startswith(n) for n in names if n)

    turned = spec.startswith("^")
    return [n for n in there if fits(n) != turned and not (turned and n == "lo")]


def _addressed(ctx: Ctx) -> set[str]:
    """Interfaces with a route of IPv4, or an address of IPv6 beyond the link. Raises OSError."""
    found = {line.split()[0] for line in ctx.text("proc/net/route").splitlines()[1:] if line}
    for line in (ctx.maybe("proc/net/if_inet6") or "").splitlines():
        words = line.split()
        if len(words) == 6 and words[3] != "20":  # 0x20: of the link only
            found.add(words[5])
    return found


@check(
    "host.name",
    tags={"preflight"},
    resource="resolver",
    deadline_s=5.0,
    on_timeout=Status.WARN,
    timeout_fix="the name server does not answer: see /etc/resolv.conf; or name all nodes in "
    "/etc/hosts",
    drains=False,
)
def host_name(ctx: Ctx) -> Result:
    """This node's name leads to an address of it that other nodes can reach.

    gloo and MASTER_ADDR go by the name: 127.0.1.1, as Debian's installer writes into /etc/hosts,
    lets every rank wait at its own node. Source: PyTorch documentation (GLOO_SOCKET_IFNAME).
    """
    topology.hardware(ctx)
    name = ctx.text("proc/sys/kernel/hostname")
    found = Findings()
    addresses = _resolved(ctx, name)
    bad = [a for a in addresses if a.startswith("127.") or a == "::1"]
    fix = f"write this node's own address for {name} into /etc/hosts or the name server"
    if not addresses:
        found.warn(f"{name} has no address", expected="an address of this node", fix=fix)
    elif bad:
        found.warn(f"{name} leads to {bad[0]}", expected="not the loopback", fix=fix)
    return found.result(f"{name}: {', '.join(addresses)}")


def _resolved(ctx: Ctx, name: str) -> list[str]:
    """By the resolver; of a tree by its etc/hosts."""
    if not ctx.live:
        rows = (row.partition("#")[0].split() for row in ctx.text("etc/hosts").splitlines())
        return [row[0] for row in rows if name in row[1:]]
    import socket

    ctx.announce(f"getaddrinfo {name}")
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))
