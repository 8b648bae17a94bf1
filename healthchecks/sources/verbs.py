"""What only libibverbs tells: the active MTU of an RDMA port. It is not in /sys."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from healthchecks.frame.check import Unknown
from supervisor.host import trusted

LIBRARY = "libibverbs.so.1"
_MTU = {1: 256, 2: 512, 3: 1024, 4: 2048, 5: 4096}  # enum ibv_mtu


class _PortAttr(ctypes.Structure):
    """The head of struct ibv_port_attr (rdma-core, verbs.h); what follows is not read.

    The exported symbol fills the structure of ABI 1.1, 48 bytes; there is room for a longer one.
    """

    _fields_ = [
        ("state", ctypes.c_int),
        ("max_mtu", ctypes.c_int),
        ("active_mtu", ctypes.c_int),
        ("rest", ctypes.c_char * 244),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mtu:
    """In bytes."""

    active: int
    most: int


class Verbs:
    """libibverbs and its list of devices. Every call may hang in the driver: `announce` is
    called before it."""

    def __init__(self, library: str, announce: Callable[[str], None]) -> None:
        """Raises Unknown where there is no such library, or it is none."""
        self._announce = announce
        if why := trusted.library(library, os.environ):
            raise Unknown(f"{library} is not loaded as root: {why}")
        try:
            self._lib = ctypes.CDLL(library, use_errno=True)
            self._lib.ibv_get_device_list.restype = ctypes.POINTER(ctypes.c_void_p)
            self._lib.ibv_get_device_list.argtypes = [ctypes.POINTER(ctypes.c_int)]
            self._lib.ibv_free_device_list.argtypes = [ctypes.POINTER(ctypes.c_void_p)]
            self._lib.ibv_free_device_list.restype = None
            self._lib.ibv_get_device_name.restype = ctypes.c_char_p
            self._lib.ibv_get_device_name.argtypes = [ctypes.c_void_p]
            self._lib.ibv_open_device.restype = ctypes.c_void_p
            self._lib.ibv_open_device.argtypes = [ctypes.c_void_p]
            self._lib.ibv_close_device.argtypes = [ctypes.c_void_p]
            self._lib.ibv_query_port.argtypes = [ctypes.c_void_p, ctypes.c_uint8, ctypes.c_void_p]
        except (OSError, AttributeError) as error:
            raise Unknown(f"{library} can't be used: {error}") from None

        self._list: Any = None  # what the library must be given back
        self._devices: dict[str, int] = {}  # handles by name

    def __enter__(self) -> Verbs:
        """Raises Unknown."""
        self._announce("ibv_get_device_list")
        count = ctypes.c_int(0)
        self._list = self._lib.ibv_get_device_list(ctypes.byref(count))
        if not self._list:
            raise Unknown(f"ibv_get_device_list: errno {ctypes.get_errno()}")
        handles = [self._list[n] for n in range(count.value)]
        self._devices = {self._lib.ibv_get_device_name(h).decode(): h for h in handles if h}
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.ibv_free_device_list(self._list)

    def mtu(self, device: str, port: int) -> Mtu:
        """Raises Unknown for a device that is not there, can't be opened, or does not answer so."""
        if device not in self._devices:
            raise Unknown("libibverbs does not list it: is /dev/infiniband/uverbs* there?")
        self._announce(f"ibv_open_device {device}")
        handle = self._lib.ibv_open_device(self._devices[device])
        if not handle:
            raise Unknown(f"ibv_open_device: errno {ctypes.get_errno()}")
        try:
            attr = _PortAttr()
            self._announce(f"ibv_query_port {device} {port}")
            rc = self._lib.ibv_query_port(handle, port, ctypes.byref(attr))
        finally:
            self._announce(f"ibv_close_device {device}")
            self._lib.ibv_close_device(handle)
            self._announce("")
        if rc:
            raise Unknown(f"ibv_query_port: error {rc}")
        if attr.active_mtu not in _MTU or attr.max_mtu not in _MTU:
            raise Unknown(f"ibv_query_port: MTU codes {attr.active_mtu} and {attr.max_mtu}")
        return Mtu(active=_MTU[attr.active_mtu], most=_MTU[attr.max_mtu])
