"""Which interface has which address."""

from __future__ import annotations

import socket

from supervisor.host.interfaces import address_of, interface_of


def test_the_loopback_has_its_address_and_all_of_its_network():
    assert address_of("lo") == "127.0.0.1"
    assert interface_of("127.0.0.1") == interface_of("127.8.9.10") == "lo"


def test_what_is_not_there_is_none():
    assert address_of("no-such-if") is None
    assert interface_of("192.0.2.77") is None  # of a network for documentation, RFC 5737


def test_every_interface_with_an_address_is_found_by_it():
    for _, name in socket.if_nameindex():
        if (address := address_of(name)) is not None:
            found = interface_of(address)
            assert found is not None and address_of(found) == address
