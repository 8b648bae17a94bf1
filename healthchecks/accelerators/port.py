"""What superv wants to know of accelerators, whoever made them.

One file a maker answers it. A maker needs little to be known at all (`AcceleratorMaker`: NVIDIA,
whose health NVML's own checks judge), and more for the checks `accel.*` to judge its devices
(`WatchedMaker`: AMD). The next maker is one more file, and a line in `accelerators.makers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from healthchecks.frame.context import Ctx
from healthchecks.sources.kernel_patterns import KernelLogPattern


class NotTold(Exception):
    """This device, or its driver's version, does not tell it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """A device with its driver."""

    index: int  # in the order of the bus
    bdf: str
    model: str
    serial: str = ""

    @property
    def label(self) -> str:
        return f"gpu{self.index}"

    @property
    def key(self) -> str:
        """Outlives boots and moves to another slot."""
        return self.serial or self.bdf

    @property
    def location(self) -> str:
        return f"{self.bdf}, serial {self.serial}" if self.serial else self.bdf


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCounts:
    """Errors of one part of a device since its driver was loaded."""

    uncorrectable: int
    corrected: int
    deferred: int = 0  # lost data that nobody has used yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensor:
    """A temperature, °C."""

    name: str
    now: float
    slowdown: float  # at which the device slows itself down


@dataclass(frozen=True, slots=True, kw_only=True)
class BusLink:
    """A PCIe link, as it is and as it can be; GT/s a lane."""

    width: int
    most_width: int
    speed: float
    most_speed: float
    busy: bool  # the device computes: an idle one may rest at a lower speed


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeProcess:
    """A process that holds memory of a device."""

    index: int  # of the device
    pid: int
    held: int  # bytes; 0 where the driver does not tell


class AcceleratorMaker(Protocol):
    """What is asked of every maker."""

    @property
    def name(self) -> str: ...

    @property
    def loaded(self) -> str:
        """A path that is there while its driver is loaded, relative to the root."""
        ...

    def processes(self, ctx: Ctx) -> Sequence[ComputeProcess]:
        """Who computes on its devices. Raises Skip where there is none, Unknown, OSError."""
        ...


class WatchedMaker(AcceleratorMaker, Protocol):
    """What `accel.*` asks besides. Of one device all raise NotTold, Unknown, OSError."""

    @property
    def driver(self) -> str:
        """Of the kernel, bound to each device."""
        ...

    @property
    def vendor(self) -> str:
        """Of PCI, as /sys has it."""
        ...

    @property
    def signs(self) -> Sequence[KernelLogPattern]:
        """How its driver says in the kernel's log that a device is in trouble."""
        ...

    def devices(self, ctx: Ctx) -> Sequence[Accelerator]:
        """Those with their driver; none where the node has none.

        Raises Unknown where some are on the bus and none has its driver, OSError.
        """
        ...

    def versions(self, ctx: Ctx, one: Accelerator) -> Mapping[str, str]:
        """Of driver and firmware, by name."""
        ...

    def memory_errors(self, ctx: Ctx, one: Accelerator) -> Mapping[str, ErrorCounts]:
        """By part of the device: its memory, caches, engines."""
        ...

    def unretired(self, ctx: Ctx, one: Accelerator) -> int:
        """Bad pages of its memory that could not yet be put out of use."""
        ...

    def heat(self, ctx: Ctx, one: Accelerator) -> Sequence[Sensor]: ...

    def link(self, ctx: Ctx, one: Accelerator) -> BusLink: ...

    def peers(self, ctx: Ctx, one: Accelerator) -> int:
        """How many others its own links reach, without the bus; 0 where it has no part in them."""
        ...

    def peer_errors(self, ctx: Ctx, one: Accelerator) -> ErrorCounts:
        """Of those links."""
        ...

    def reset(self, one: Accelerator) -> str:
        """How it is reset, as a sentence."""
        ...
