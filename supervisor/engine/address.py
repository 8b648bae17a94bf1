"""The address of this machine that agents dial."""

from __future__ import annotations

import socket
from pathlib import Path

from supervisor.config import Job, Site
from supervisor.core.errors import UserError
from supervisor.host.interfaces import address_of


def engine_address(job: Job | None, site: Site) -> str:
    """Where agents reach this machine. Raises UserError where that can't be told."""
    if job is not None and job.on_this_machine:
        return "127.0.0.1"
    wanted = site.engine_address or socket.gethostname()
    if site.engine_address and Path(f"/sys/class/net/{site.engine_address}").exists():
        address = address_of(site.engine_address)
        if address is None:
            raise UserError(
                f"site.yaml: engine_address: {wanted} has no IPv4 address; name another interface, "
                "or an address"
            )
        return address
    try:
        found = socket.getaddrinfo(wanted, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(
            f"site.yaml: engine_address: {wanted}: {error}; set the address that nodes reach"
        ) from None
    address = str(found[0][4][0])
    if address.startswith("127."):
        raise UserError(
            f"this machine's name {wanted} means {address}, which no node reaches; "
            "set engine_address in site.yaml"
        )
    return address
