"""NVML, the driver's own view of its GPUs, through nvidia-ml-py (imported only where a GPU is).

One session for each process: the checks of the "nvml" lane share it. Every call goes through one
place that announces it (so that a call that hangs has a name and a deadline) and sorts its error:
Unsupported is the GPU's or driver's generation, NvmlCallError is everything else. A GPU that is
lost does not keep the others from being judged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from healthchecks.frame.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources import pci
from supervisor.host import trusted

GPU_IS_LOST, RESET_REQUIRED, UNKNOWN_ERROR = 15, 16, 999
DRIVER_NOT_LOADED, CORRUPTED_INFOROM, VERSION_MISMATCH = 9, 14, 18
# NOT_SUPPORTED, FUNCTION_NOT_FOUND, VGPU_ECC_NOT_SUPPORTED, ARGUMENT_VERSION_MISMATCH (a driver
# that is older than the struct), DEPRECATED
UNSUPPORTED = (3, 13, 22, 25, 26)
INVALID_ARGUMENT = 2  # of one field: an id that this driver does not know
DRIVER_FIX = (
    "load the driver (modprobe nvidia) or install it (nvidia-smi must answer); if the kernel log "
    "has NVRM errors, reboot the node"
)
HUNG_FIX = (
    "reboot the node: its NVIDIA driver does not answer, and processes that asked it can't be "
    "killed; if it comes back, look for Xids 119, 120 and 79 in the kernel log before the reboot"
)
_FIXES = {
    GPU_IS_LOST: (
        "reboot the node; in a virtual machine a guest's reboot may not bring the GPU back: page "
        "the host (Xid 79)"
    ),
    RESET_REQUIRED: (
        "end all processes on the GPU and reset it: nvidia-smi --gpu-reset -i N; else reboot"
    ),
    UNKNOWN_ERROR: "reboot the node; look for NVRM lines in its kernel log",
    DRIVER_NOT_LOADED: DRIVER_FIX,
    VERSION_MISMATCH: (
        "the library was updated while the old driver is loaded: reboot the node, or unload and "
        "load the nvidia modules"
    ),
}
CALL_DEADLINE_S = 10.0  # one call; without persistence mode the first ones start up a GPU each


class Unsupported(Exception):
    """This GPU or this driver does not have it."""


class NvmlCallError(Exception):
    """A call that failed."""

    def __init__(self, call: str, code: int, text: str) -> None:
        super().__init__(f"{call}: {text} ({code})")
        self.code = code

    @property
    def fails(self) -> bool:
        """Whether it says that the GPU can't be used; others may pass, as a timeout."""
        return self.code in (GPU_IS_LOST, RESET_REQUIRED, UNKNOWN_ERROR)

    @property
    def fix(self) -> str:
        return _FIXES.get(self.code, "")


class NvmlUnavailable(Unknown):
    """NVML can't be used at all on a node that has GPUs."""

    def __init__(self, why: str, code: int, fix: str) -> None:
        super().__init__(why)
        self.code = code
        self.fix = fix


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU that gave its handle."""

    index: int
    handle: Any = field(compare=False)
    bdf: str = ""  # as in /sys: 0000:1b:00.0
    uuid: str = ""
    serial: str = ""
    name: str = ""

    @property
    def label(self) -> str:
        return f"gpu{self.index}"

    @property
    def key(self) -> str:
        """Outlives boots and moves to another slot."""
        return self.uuid or self.serial or self.bdf

    @property
    def location(self) -> str:
        return ", ".join(p for p in (self.bdf, f"serial {self.serial}" if self.serial else "") if p)


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A GPU that gave no handle, or lost its voice later."""

    index: int
    bdf: str
    error: NvmlCallError

    @property
    def label(self) -> str:
        return f"gpu{self.index}"


@dataclass(slots=True, kw_only=True)
class NvmlSession:
    """What is known of the node's GPUs; for one process."""

    count: int
    gpus: list[Gpu] = field(default_factory=list)
    missing: dict[int, Missing] = field(default_factory=dict)


_sessions: dict[Path, NvmlSession | tuple[list[str], NvmlUnavailable]] = {}


def on_bus(ctx: Ctx) -> list[str]:
    """PCI addresses of NVIDIA's GPUs."""
    return pci.functions(ctx, pci.DISPLAY, pci.NVIDIA)


def open_nvml(ctx: Ctx) -> Nvml:
    """The session of this process.

    Raises Skip where no GPU is, NvmlUnavailable where NVML can't be used.
    Which GPUs are there is asked of the PCI bus, so that a driver that sees none is not taken for a
    node without any.
    """
    kept = _sessions.get(ctx.root)
    if isinstance(kept, NvmlSession):
        return Nvml(ctx, kept)
    bus = on_bus(ctx)
    if not bus:
        if ctx.maybe("sys/module/nvidia/version") is None:
            raise Skip("no NVIDIA GPU is on the PCI bus")
        raise NvmlUnavailable(
            "the nvidia driver is loaded, but no GPU is on the PCI bus",
            GPU_IS_LOST,
            "reboot the node; in a virtual machine let the host attach its GPUs again",
        )
    if kept is None or kept[0] != bus:
        try:
            _sessions[ctx.root] = _open(ctx, bus)
        except NvmlUnavailable as error:
            _sessions[ctx.root] = (bus, error)
        return open_nvml(ctx)
    why = kept[1]
    raise NvmlUnavailable(str(why), why.code, why.fix)


def _open(ctx: Ctx, bus: Sequence[str]) -> NvmlSession:
    if why := trusted.library("libnvidia-ml.so.1", os.environ):
        raise NvmlUnavailable(f"libnvidia-ml.so.1 is not loaded as root: {why}", 12, DRIVER_FIX)
    try:
        _call(ctx, "nvmlInit")
        session = NvmlSession(count=_call(ctx, "nvmlDeviceGetCount"))
    except Unsupported as error:
        raise NvmlUnavailable(
            f"the NVML library is no NVML library: {error}", 13, DRIVER_FIX
        ) from error
    except NvmlCallError as error:
        raise NvmlUnavailable(str(error), error.code, error.fix or DRIVER_FIX) from error
    failed: dict[int, NvmlCallError] = {}
    for index in range(session.count):
        try:
            session.gpus.append(_identified(ctx, index))
        except (NvmlCallError, Unsupported) as error:
            failed[index] = (
                error if isinstance(error, NvmlCallError) else NvmlCallError(str(error), 13, "")
            )
    # Indices follow the order of the bus, so those that did not answer are the others, in order.
    silent = [bdf for bdf in bus if bdf not in {gpu.bdf for gpu in session.gpus}]
    for index, failure in failed.items():
        bdf = silent.pop(0) if silent else ""
        session.missing[index] = Missing(index=index, bdf=bdf, error=failure)
    return session


def _identified(ctx: Ctx, index: int) -> Gpu:
    handle = _call(ctx, "nvmlDeviceGetHandleByIndex", index)
    texts = {}
    for name in ("UUID", "Serial", "Name"):
        try:
            texts[name] = as_text(_call(ctx, f"nvmlDeviceGet{name}", handle, of=f"gpu{index}"))
        except Unsupported:
            texts[name] = ""
    pci = _call(ctx, "nvmlDeviceGetPciInfo", handle, of=f"gpu{index}")
    return Gpu(
        index=index,
        handle=handle,
        bdf=sysfs_bdf(as_text(pci.busId)),
        uuid=texts["UUID"],
        serial=texts["Serial"],
        name=texts["Name"],
    )


def as_text(value: Any) -> str:
    """nvidia-ml-py gives bytes in some versions and places, str in others."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def sysfs_bdf(bus_id: str) -> str:
    """NVML's 00000000:1B:00.0 as /sys has it: 0000:1b:00.0."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def _call(ctx: Ctx, name: str, *args: Any, of: str = "") -> Any:
    """The one place that calls NVML. Raises Unsupported or NvmlCallError."""
    import pynvml  # type: ignore[import-untyped]

    function = getattr(pynvml, name, None)
    if function is None:
        raise Unsupported(f"nvidia-ml-py has no {name}")
    # A handle says nothing to a reader; an index or a link number does.
    shown = [of, *(str(a) for a in args if isinstance(a, int))]
    ctx.announce(" ".join([name, *(s for s in shown if s)]))
    try:
        return function(*args)
    except pynvml.NVMLLibraryMismatchError as error:
        raise Unsupported(name) from error
    except pynvml.NVMLError as error:
        if error.value in UNSUPPORTED:
            raise Unsupported(name) from error
        raise NvmlCallError(name, error.value, str(error)) from error


class Nvml:
    """What one check asks of NVML."""

    def __init__(self, ctx: Ctx, session: NvmlSession) -> None:
        self._ctx = ctx
        self._session = session

    @property
    def count(self) -> int:
        """As NVML says; more than `gpus` where one gave no handle."""
        return self._session.count

    @property
    def gpus(self) -> Sequence[Gpu]:
        """Those that gave a handle, and were not lost since."""
        return [gpu for gpu in self._session.gpus if gpu.index not in self._session.missing]

    @property
    def missing(self) -> Iterable[Missing]:
        return self._session.missing.values()

    def system(self, name: str, *args: Any) -> Any:
        """A call that is for no GPU. Raises Unsupported or NvmlCallError."""
        return _call(self._ctx, name, *args)

    def ask(self, gpu: Gpu, name: str, *args: Any) -> Any:
        """A call for one GPU. Raises Unsupported or NvmlCallError."""
        return _call(self._ctx, name, gpu.handle, *args, of=gpu.label)

    def maybe(self, gpu: Gpu, name: str, *args: Any) -> Any:
        """A call for one GPU; None where it is not supported. Raises NvmlCallError."""
        try:
            return self.ask(gpu, name, *args)
        except Unsupported:
            return None

    def fields(self, gpu: Gpu, ids: Sequence[int], scope: int = 0) -> dict[int, float]:
        """Values of NVML_FI_*; those that are not supported are left out. Raises NvmlCallError.

        `scope` is the link's number for fields of a link.
        """
        try:
            values = self.ask(gpu, "nvmlDeviceGetFieldValues", [(i, scope) for i in ids])
        except Unsupported:
            return {}
        found: dict[int, float] = {}
        for one in values:
            if one.nvmlReturn == 0:
                found[one.fieldId] = _number(one)
            elif one.nvmlReturn not in (*UNSUPPORTED, INVALID_ARGUMENT):
                import pynvml

                text = str(pynvml.NVMLError(one.nvmlReturn))
                raise NvmlCallError(f"nvmlDeviceGetFieldValues {one.fieldId}", one.nvmlReturn, text)
        return found

    def fill(self, gpu: Gpu, name: str, struct: Any) -> Any:
        """A call that fills a struct of nvidia-ml-py, which is returned."""
        import ctypes

        self.ask(gpu, name, ctypes.byref(struct))  # by value nvidia-ml-py would pass a copy
        return struct

    def temperature(self, gpu: Gpu) -> int | None:
        """°C. Raises NvmlCallError."""
        now = self.maybe(gpu, "nvmlDeviceGetTemperatureV", 0)
        if now is None:  # a driver before 570
            now = self.maybe(gpu, "nvmlDeviceGetTemperature", 0)
        return None if now is None else int(now)

    def in_use(self, gpu: Gpu) -> bool:
        """Whether processes compute on it. Raises NvmlCallError."""
        return bool(self.maybe(gpu, "nvmlDeviceGetComputeRunningProcesses"))

    def for_each_gpu(
        self, found: Findings, judge: Callable[[Gpu], None], *, fine: str, what: str
    ) -> Result:
        """Judge every GPU; a call that fails for one is a finding, and hinders no other's.

        A lost GPU is a failure of the check that meets it first; for later ones it is unknown.
        Raises Skip where no GPU supports `what`.
        """
        earlier, judged = [*self.missing], 0
        failed: list[tuple[Gpu, NvmlCallError]] = []
        for gpu in self.gpus:
            try:
                judge(gpu)
                judged += 1
            except Unsupported:
                continue
            except NvmlCallError as error:
                failed.append((gpu, error))
                judged += 1
        if len(failed) == self.count > 1 and len({str(error) for _, error in failed}) == 1:
            shared = failed.pop()[1]  # it is the driver's, and no GPU's
            found.add(
                Status.FAIL if shared.fails else Status.UNKNOWN,
                f"all {self.count} GPUs: {shared}",
                expected="an answer",
                fix=shared.fix,
            )
            failed = []
        for gpu, failure in failed:
            self.report(found, gpu, failure)
        for lost in earlier:
            self.leave_out(found, lost)
        if not judged and not self._session.missing:
            raise Skip(f"{what} is not supported by {self.names() or 'any GPU'}")
        some = f"{judged} of {self.count}" if judged < self.count else f"{judged}"
        return found.result(f"{some} GPU{'s' if judged > 1 else ''}: {fine}")

    def report(self, found: Findings, gpu: Gpu, error: NvmlCallError) -> None:
        """Make a finding of a failed call."""
        status = Status.FAIL if error.fails else Status.UNKNOWN
        found.add(
            status,
            f"{error} ({gpu.location})",
            expected="an answer",
            fix=error.fix,
            device=gpu.label,
        )
        if error.code in (GPU_IS_LOST, RESET_REQUIRED):
            self._session.missing[gpu.index] = Missing(index=gpu.index, bdf=gpu.bdf, error=error)

    def leave_out(self, found: Findings, lost: Missing) -> None:
        """Say that a GPU was not looked at; gpu.handle says why, and what to do."""
        at = f" ({lost.bdf})" if lost.bdf else ""
        found.unknown(f"not asked: {lost.error}{at}; see gpu.handle", device=lost.label)

    def names(self) -> str:
        return ", ".join(dict.fromkeys(gpu.name for gpu in self.gpus if gpu.name))


def _number(value: Any) -> float:
    """Of an nvmlFieldValue_t, by its valueType."""
    union = value.value
    kinds = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
    return float(getattr(union, kinds[value.valueType]))


def nvml_check(
    name: str,
    *,
    tags: Iterable[str],
    deadline_s: float = 20.0,
    call_deadline_s: float | None = CALL_DEADLINE_S,
    cohort: Status | None = None,
    untested: str = "no GPU: built against NVIDIA's NVML API Reference Guide",
    **more: Any,
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """A check that asks NVML: one lane for all, and no answer means that the driver hangs."""
    return check(
        name,
        tags=tags,
        resource="nvml",
        deadline_s=deadline_s,
        call_deadline_s=call_deadline_s,
        on_timeout=Status.FAIL,
        timeout_fix=HUNG_FIX,
        cohort=cohort,
        untested=untested,
        **more,
    )
