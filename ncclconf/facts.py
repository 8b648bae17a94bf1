"""What the rules know of machine and job. None: not known, and no rule that needs it speaks."""

from __future__ import annotations

from dataclasses import dataclass

from ncclconf.catalogue import Version

IB, ETHERNET = "InfiniBand", "Ethernet"  # link layers, in the kernel's words


@dataclass(frozen=True, slots=True, kw_only=True)
class Hca:
    """A port of an RDMA device, as /sys/class/infiniband shows it."""

    device: str
    port: int = 1
    link_layer: str = IB
    active: bool = True
    rate_gb: float = 400.0
    mtu: int | None = None  # active_mtu, bytes
    role: str = "fabric"  # fabric, storage, management, lpf
    gids: tuple[int, ...] | None = None  # indices of RoCE v2 GIDs that are not link-local


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface. `routed`: it has an address that other nodes may reach."""

    name: str
    up: bool = True
    routed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """About one node and what runs there."""

    nccl: Version | None = None
    torch: Version | None = None
    nodes: int | None = None
    hcas: tuple[Hca, ...] | None = None
    interfaces: tuple[Interface, ...] | None = None
    gpus: str | None = None  # their name, as NVML gives it; empty: there are none
    nvlink: bool | None = None
    virtual: bool | None = None
    fabric_manager: bool | None = None  # None also where the node has no switches of its own
    gpudirect: bool | None = None  # nvidia_peermem, or dma-buf with the open driver
    acs: bool | None = None  # PCI bridges redirect peer traffic, or an IOMMU translates
    memlock_unlimited: bool | None = None
    open_files: int | None = None
    shm_gib: float | None = None
    files: frozenset[str] | None = None  # which of the files that variables name are there
    collective_timeout_s: float | None = None  # the process group's; torch's own is 600 s

    @property
    def link_layers(self) -> frozenset[str] | None:
        """Of the fabric's active ports."""
        if self.hcas is None:
            return None
        return frozenset(h.link_layer for h in self.hcas if h.active and h.role == "fabric")

    @property
    def only_infiniband(self) -> bool:
        return self.link_layers == {IB}

    @property
    def only_roce(self) -> bool:
        return self.link_layers == {ETHERNET}

    def fabric(self) -> tuple[Hca, ...]:
        """Active ports for the job's traffic; empty also where nothing is known."""
        return tuple(h for h in self.hcas or () if h.active and h.role == "fabric")
