"""The NICs of the healthy node: 8 InfiniBand fabric ports, 2 RoCE storage ports, 4 LPF ports."""

from __future__ import annotations

from dataclasses import dataclass

FABRIC = tuple(f"mlx5_{n}" for n in range(8))
STORAGE = ("mlx5_8", "mlx5_9")
LPF = tuple(f"mlx5_{n}" for n in range(10, 14))  # NVLink switch management, not fabric
_FABRIC_BUSES = ("18", "2a", "3a", "5d", "9a", "ab", "ba", "da")
_STORAGE_BUSES = ("41", "d1")
_LPF_BUSES = ("05", "06", "07", "08")
NUMA_OF: dict[str, int] = {}  # by bus address; filled by pci()

COUNTERS = [
    "VL15_dropped",
    "excessive_buffer_overrun_errors",
    "link_downed",
    "link_error_recovery",
    "local_link_integrity_errors",
    "port_rcv_constraint_errors",
    "port_rcv_data",
    "port_rcv_errors",
    "port_rcv_packets",
    "port_rcv_remote_physical_errors",
    "port_rcv_switch_relay_errors",
    "port_xmit_constraint_errors",
    "port_xmit_data",
    "port_xmit_discards",
    "port_xmit_packets",
    "port_xmit_wait",
    "symbol_error",
]
HW_COUNTERS = [
    "duplicate_request",
    "implied_nak_seq_err",
    "local_ack_timeout_err",
    "out_of_buffer",
    "out_of_sequence",
    "packet_seq_err",
    "req_cqe_error",
    "rnr_nak_retry_err",
    "rx_write_requests",
]
ROCE_COUNTERS = [
    "np_cnp_sent",
    "np_ecn_marked_roce_packets",
    "roce_adp_retrans",
    "roce_slow_restart",
    "rp_cnp_handled",
    "rp_cnp_ignored",
    "rx_icrc_encapsulated",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    device: str
    bdf: str
    numa: int
    netdev: str
    role: str  # fabric, storage, lpf
    number: int  # within its role

    @property
    def guid(self) -> str:
        kind = {"fabric": 0xA0, "storage": 0xB0, "lpf": 0xC0}[self.role]
        return f"9c05:9103:00{kind:02x}:{self.number:04x}"


def nics() -> list[Nic]:
    found = []
    for role, devices, buses, netdev in (
        ("fabric", FABRIC, _FABRIC_BUSES, "ib{}"),
        ("storage", STORAGE, _STORAGE_BUSES, "ens4{}np0"),
        ("lpf", LPF, _LPF_BUSES, "ibp{}lpf"),
    ):
        half = len(devices) // 2
        for n, (device, bus) in enumerate(zip(devices, buses, strict=True)):
            found.append(
                Nic(
                    device=device,
                    bdf=f"0000:{bus}:00.0",
                    numa=n // half if role != "lpf" else 0,
                    netdev=netdev.format(n),
                    role=role,
                    number=n,
                )
            )
    return found


def pci(bdf: str, vendor: str, device: str, kind: str, numa: int) -> dict[str, str]:
    """What every PCI Express device of gen 5 x16 shows."""
    NUMA_OF[bdf] = numa
    first, last = (0, 59) if numa == 0 else (60, 119)
    aer = "RxErr 0\nBadTLP 0\nBadDLLP 0\nRollover 0\nTimeout 0\nNonFatalErr 0\n"
    fatal = "Undefined 0\nDLP 0\nSDES 0\nTLP 0\nFCP 0\nCmpltTO 0\nCmpltAbrt 0\nUnxCmplt 0\n"
    found = {
        "vendor": vendor,
        "device": device,
        "class": kind,
        "numa_node": str(numa),
        "local_cpulist": f"{first}-{last}",
        "current_link_width": "16",
        "max_link_width": "16",
        "current_link_speed": "32.0 GT/s PCIe",
        "max_link_speed": "32.0 GT/s PCIe",
        "enable": "1",
        "aer_dev_correctable": f"{aer}TOTAL_ERR_COR 0",
        "aer_dev_nonfatal": f"{fatal}TOTAL_ERR_NONFATAL 0",
        "aer_dev_fatal": f"{fatal}TOTAL_ERR_FATAL 0",
    }
    return {f"sys/bus/pci/devices/{bdf}/{name}": text for name, text in found.items()}


def files() -> dict[str, str]:
    found: dict[str, str] = {}
    for nic in nics():
        ib = nic.role != "storage"
        found |= pci(nic.bdf, "0x15b3", "0x1021", "0x020700" if ib else "0x020000", nic.numa)
        at = f"sys/bus/pci/devices/{nic.bdf}"
        mark = "\x11V3SMDL=SW_MNG" if nic.role == "lpf" else "\x0eVAMLX:MN=MLNX"
        found[f"{at}/vpd"] = f"\x02NVIDIA ConnectX-7 Adapter\x90SN\x0cMT24{nic.guid[-4:]}{mark}"
        found |= {f"{at}/infiniband/{nic.device}/{k}": v for k, v in _device(nic).items()}
        found |= {f"{at}/net/{nic.netdev}/{k}": v for k, v in _netdev(nic).items()}
        number = nic.device.removeprefix("mlx5_")
        found[f"sys/class/infiniband_verbs/uverbs{number}/ibdev"] = nic.device
        found[f"dev/infiniband/uverbs{number}"] = ""
    found |= {f"sys/class/net/eth0/{k}": v for k, v in _ethernet("52:54:00:12:34:56", -1).items()}
    found |= {f"sys/class/net/lo/{k}": v for k, v in {"mtu": "65536", "type": "772"}.items()}
    for module in ("mlx5_core", "mlx5_ib", "ib_core", "ib_uverbs", "ib_umad", "ib_ipoib"):
        found[f"sys/module/{module}/initstate"] = "live"
    found["sys/module/mlx5_core/version"] = "24.10-2.1.8"
    return found


def links() -> dict[str, str]:
    """By path, as the kernel makes them."""
    found = {}
    for nic in nics():
        at = f"bus/pci/devices/{nic.bdf}"
        found[f"sys/class/infiniband/{nic.device}"] = f"../../{at}/infiniband/{nic.device}"
        found[f"sys/{at}/infiniband/{nic.device}/device"] = f"../../../{nic.bdf}"
        found[f"sys/class/net/{nic.netdev}"] = f"../../{at}/net/{nic.netdev}"
        found[f"sys/{at}/net/{nic.netdev}/device"] = f"../../../{nic.bdf}"
    return found


def unreadable() -> list[str]:
    """An LPF's counters: on real nodes reading them floods the kernel's log."""
    return [
        f"sys/bus/pci/devices/{nic.bdf}/infiniband/{nic.device}/ports/1/{folder}"
        for nic in nics()
        if nic.role == "lpf"
        for folder in ("counters", "hw_counters")
    ]


def _device(nic: Nic) -> dict[str, str]:
    ib = nic.role != "storage"
    found = {
        "fw_ver": "28.43.2026",
        "hw_rev": "0",
        "hca_type": "MT4129",
        "board_id": {"fabric": "MT_0000000838", "storage": "MT_0000000834"}.get(
            nic.role, "MT_0000001187"
        ),
        "node_guid": nic.guid,
        "sys_image_guid": nic.guid,
        "node_type": "1: CA",
        "node_desc": f"node {nic.device}",
        "ports/1/state": "4: ACTIVE",
        "ports/1/phys_state": "5: LinkUp",
        "ports/1/rate": "400 Gb/sec (4X NDR)" if ib else "200 Gb/sec (4X HDR)",
        "ports/1/link_layer": "InfiniBand" if ib else "Ethernet",
        "ports/1/lid": hex(0x100 + nic.number) if ib else "0x0",
        "ports/1/lid_mask_count": "0",
        "ports/1/sm_lid": "0x1" if ib else "0x0",
        "ports/1/sm_sl": "0",
        "ports/1/cap_mask": "0xa751e848" if ib else "0x00010000",
        "ports/1/pkeys/0": "0xffff",
    }
    if ib:
        found |= {f"ports/1/pkeys/{n}": "0x0000" for n in (1, 2, 3)}
    if nic.role != "lpf":
        names = (*HW_COUNTERS, *(() if ib else ROCE_COUNTERS))
        found |= {f"ports/1/counters/{name}": "0" for name in COUNTERS}
        found |= {f"ports/1/hw_counters/{name}": "0" for name in names}
        found["ports/1/hw_counters/lifespan"] = "10"
    return found | _gids(nic)


def _gids(nic: Nic) -> dict[str, str]:
    """Unset entries are there as zeros; their attributes can't be read (EINVAL), so: not there."""
    zeros = ":".join(["0000"] * 8)
    if nic.role == "storage":
        local = f"fe80:0000:0000:0000:{nic.guid}"
        ip = f"0000:0000:0000:0000:0000:ffff:0a{nic.number:02x}:0011"
        table = [(local, "IB/RoCE v1"), (local, "RoCE v2"), (ip, "IB/RoCE v1"), (ip, "RoCE v2")]
    else:
        table = [(f"fe80:0000:0000:0000:{nic.guid}", "IB/RoCE v1")]
    found = {}
    for n, (gid, kind) in enumerate(table):
        found[f"ports/1/gids/{n}"] = gid
        found[f"ports/1/gid_attrs/types/{n}"] = kind
        found[f"ports/1/gid_attrs/ndevs/{n}"] = nic.netdev
    for n in range(len(table), len(table) + 2):
        found[f"ports/1/gids/{n}"] = zeros
    return found


def _netdev(nic: Nic) -> dict[str, str]:
    if nic.role == "storage":
        found = _ethernet(f"9c:05:91:b0:00:{nic.number:02x}", 200000) | {"mtu": "9000"}
        for side in ("roce_np", "roce_rp"):
            found |= {f"ecn/{side}/enable/{p}": "1" for p in range(8)}
        return found
    return {
        "type": "32",
        "mtu": "4092",
        "mode": "datagram",
        "operstate": "up" if nic.role == "fabric" else "down",
        "address": f"00:00:10:29:fe:80:00:00:00:00:00:00:{nic.guid.replace(':', '')}",
        "carrier": "1",
        "speed": "400000",
    }


def _ethernet(address: str, speed: int) -> dict[str, str]:
    return {
        "type": "1",
        "mtu": "1500",
        "operstate": "up",
        "address": address,
        "carrier": "1",
        "speed": str(speed),
    }
