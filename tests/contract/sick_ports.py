"""Sick, in other words: ports and NICs."""

from __future__ import annotations

from checks import Case, both, lost, wrote
from healthy import IB, PCI
from sick_rows import (
    FAIL,
    MINUTE,
    WARN,
    at,
    grew,
    lasts,
    rows,
)

PORTS = [
    *rows(
        "ib.port",
        (
            FAIL,
            "DOWN, Polling",
            "mlx5, a pulled cable",
            at("mlx5_3", state="1: DOWN", phys_state="2: Polling"),
        ),
        (
            FAIL,
            "DOWN, Disabled",
            "mlx5, disabled at the switch",
            at("mlx5_3", state="1: DOWN", phys_state="3: Disabled"),
        ),
        (FAIL, "DOWN, Sleep", "mlx4, asleep", at("mlx5_3", state="1: DOWN", phys_state="1: Sleep")),
        (FAIL, "200 Gb/s", "half the lanes", at("mlx5_3", rate="200 Gb/sec (2X NDR)")),
        (FAIL, "2 Gb/s", "a rate with a fraction", at("mlx5_3", rate="2.5 Gb/sec (1X SDR)")),
        (FAIL, "ACTIVE_DEFER", "IBTA, state 5", at("mlx5_3", state="5: ACTIVE_DEFER")),
        earlier=MINUTE,
    ),
    *lasts(
        "ib.port",
        (FAIL, "INIT", "no subnet manager", at("mlx5_3", state="2: INIT")),
        (FAIL, "ARMED", "a subnet manager that died", at("mlx5_3", state="3: ARMED")),
        (
            FAIL,
            "PortConfigurationTraining",
            "trains for ever",
            at("mlx5_3", state="1: DOWN", phys_state="4: PortConfigurationTraining"),
        ),
    ),
    Case(
        check="ib.port",
        name="a port that site.yaml names, never seen active",
        change=at("mlx5_3", state="1: DOWN", phys_state="2: Polling"),
        ports={"fabric": ["mlx5_[0-7]"]},
        status=FAIL,
        seen="mlx5_3: DOWN",
    ),
    Case(
        check="ib.port",
        name="one of eight ports, on the first look ever",
        change=at("mlx5_3", state="1: DOWN", phys_state="2: Polling"),
        status=WARN,
        seen="mlx5_3: DOWN, Polling, and was never seen active",
    ),
    *rows(
        "ib.sm",
        (FAIL, "LID 0x0", "hex, as mlx5", at("mlx5_1", lid="0x0", sm_lid="0x0")),
        (FAIL, "LID 0x0", "decimal, as other drivers", at("mlx5_1", lid="0", sm_lid="0")),
        (FAIL, "LID 0xffff", "the permissive LID", at("mlx5_1", lid="0xffff")),
        (FAIL, "manager's LID 0x0", "its manager is gone", at("mlx5_1", sm_lid="0x0")),
    ),
    *rows(
        "ib.pkey",
        (FAIL, "limited", "a limited member", wrote(f"{IB}/mlx5_1/ports/1/pkeys/0", "0x7fff")),
        (FAIL, "no partition", "an empty table", wrote(f"{IB}/mlx5_1/ports/1/pkeys/0", "0x0000")),
        (
            FAIL,
            "limited",
            "limited in a partition of its own",
            both(
                wrote(f"{IB}/mlx5_1/ports/1/pkeys/0", "0x0000"),
                wrote(f"{IB}/mlx5_1/ports/1/pkeys/1", "0x0123"),
            ),
        ),
    ),
    *rows(
        "ib.counters",
        (FAIL, "1 link losses", "IBTA LinkDowned", grew("mlx5_1", "counters/link_downed", 1)),
        (FAIL, "symbol errors", "IBTA SymbolError", grew("mlx5_1", "counters/symbol_error", 900)),
        (
            WARN,
            "recoveries",
            "IBTA LinkErrorRecovery",
            grew("mlx5_1", "counters/link_error_recovery", 9),
        ),
        (
            WARN,
            "integrity",
            "IBTA LocalLinkIntegrityErrors",
            grew("mlx5_1", "counters/local_link_integrity_errors", 2),
        ),
        (
            WARN,
            "is full",
            "a counter of 16 bits that sticks",
            grew("mlx5_1", "counters/symbol_error", 65535),
        ),
        earlier=MINUTE,
    ),
    *rows(
        "roce.counters",
        (
            WARN,
            "slow restarts",
            "mlx5 hw_counters, congestion",
            grew("mlx5_8", "hw_counters/roce_slow_restart", 9000),
        ),
        (
            WARN,
            "out of sequence",
            "mlx5 hw_counters, losses",
            grew("mlx5_8", "hw_counters/out_of_sequence", 9000),
        ),
        (
            WARN,
            "timed out",
            "mlx5 hw_counters, timeouts",
            grew("mlx5_8", "hw_counters/local_ack_timeout_err", 900),
        ),
        earlier=MINUTE,
    ),
    *rows(
        "ib.missing",
        (
            FAIL,
            "gone from PCI",
            "a NIC that fell off",
            both(lost(f"{IB}/mlx5_2"), lost(f"{PCI}/0000:3a:00.0")),
        ),
        (
            FAIL,
            "no RDMA device",
            "mlx5_ib did not take it",
            both(lost(f"{IB}/mlx5_2"), lost(f"{PCI}/0000:3a:00.0/infiniband")),
        ),
        (
            FAIL,
            "gone from PCI",
            "a storage NIC",
            both(lost(f"{IB}/mlx5_9"), lost(f"{PCI}/0000:d1:00.0")),
        ),
        earlier=MINUTE,
    ),
    *rows(
        "nic.fw",
        (
            WARN,
            "fw_ver 28.39.1002",
            "one NIC was not flashed",
            wrote(f"{IB}/mlx5_2/fw_ver", "28.39.1002"),
        ),
        (
            WARN,
            "board_id MT_0000000999",
            "one card of another maker",
            wrote(f"{IB}/mlx5_2/board_id", "MT_0000000999"),
        ),
        (
            WARN,
            "fw_ver 28.38",
            "two of eight",
            both(*(wrote(f"{IB}/mlx5_{n}/fw_ver", "28.38.1900") for n in (2, 3))),
        ),
    ),
    *rows(
        "roce.gid",
        (
            FAIL,
            "mlx5_8: no RoCE v2 GID",
            "its interface has no address",
            both(*(wrote(f"{IB}/mlx5_8/ports/1/gids/{n}", ":".join(["0000"] * 8)) for n in (2, 3))),
        ),
        (
            FAIL,
            "mlx5_8: no RoCE v2 GID",
            "RoCE v1 alone",
            both(
                *(wrote(f"{IB}/mlx5_8/ports/1/gid_attrs/types/{n}", "IB/RoCE v1") for n in (1, 3))
            ),
        ),
        (
            FAIL,
            "mlx5_9: no RoCE v2 GID",
            "link-local alone",
            both(
                *(
                    wrote(
                        f"{IB}/mlx5_9/ports/1/gids/{n}", "fe80:0000:0000:0000:0000:0000:0000:0001"
                    )
                    for n in (2, 3)
                )
            ),
        ),
        (
            WARN,
            "not its own: 3 on docker0",
            "an interface of somebody else",
            wrote(f"{IB}/mlx5_8/ports/1/gid_attrs/ndevs/3", "docker0"),
        ),
    ),
]
