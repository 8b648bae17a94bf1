"""What a health check is: a decorated function that looks at one thing and says what it found.

    @check("fs.local", tags={"preflight", "running"})
    def fs_local(ctx: Ctx, *, most: Annotated[int, About(doc="…", unit="%")] = 85) -> Result:
        \"""Local file systems have room left. …source of the threshold…\"""

Keyword arguments are the check's configuration: site.yaml, the command line and docs/checks/ take
them from the signature. A check knows nothing of deadlines, processes or output: the runner does.
"""

from __future__ import annotations

import inspect
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from supervisor.core.check_status import Status as Status
from supervisor.core.check_status import worst
from supervisor.core.setting import About

TAGS = {
    "preflight": "before a run, on an idle node; all of it under 10 s",
    "prolog": "cheap enough for Slurm's Prolog; all of it under 2 s",
    "running": "safe beside a training job",
    "deep": "loads GPUs, links or storage; idle nodes only, minutes",
}


class Blame(StrEnum):
    """Whose a failure is. Only the node's own may drain it."""

    NODE = "node"
    SHARED = "shared"  # a server, a switch, the fabric: many nodes show it
    USER = "user"  # left behind or asked for by a job


class Gap(StrEnum):
    """Why something is UNKNOWN with which nothing is wrong: it is counted apart."""

    NOT_YET = "not yet"  # there is no earlier look to compare with
    RIGHTS = "rights"  # this user may not look
    TOOL = "tool"  # a tool that a site may have or not is not installed


# What root alone may read, unless somebody gives the right: what it is → how to give it.
RIGHTS = {
    "the kernel's log": "CAP_SYSLOG (setcap, or AmbientCapabilities= of the service that runs the "
    "checks), or sysctl kernel.dmesg_restrict=0",
    "vital product data of PCI devices": "one look as root on each node: it is remembered",
    "PCI configuration space": "CAP_SYS_ADMIN, or one look as root",
    "device files": "the group of the device file (a udev rule), or the program's own sudo rule",
}
AS_ROOT = "let root look too (superv sweep as root, or Slurm's HealthCheckProgram)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A measurement."""

    value: float
    unit: str = ""  # SI where there is one: s, B, B/s, Hz, W, °C, %, /h; empty for a count


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one check found on one node (on one `target` of it)."""

    status: Status
    seen: str  # one line
    expected: str = ""
    fix: str = ""  # what to do, as a sentence or a command
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)  # compared with other nodes of the kind
    devices: tuple[str, ...] = ()  # what is blamed: gpu3, mlx5_4, nvme0 …
    shared: str = ""  # what other nodes would show too, as "nfs server 10.0.0.5"
    by_users: bool = False  # what users can bring about: keeps a run off the node, never drains it
    corroborated: bool = False  # a check with a witness has seen it by other means itself
    gap: Gap | None = None  # of UNKNOWN: nothing is wrong, it was only not measured


class Skip(Exception):
    """Raised by a check that does not apply to this node; the text says why."""


class Unknown(Exception):
    """Raised by a check that could not measure; the text says why."""

    gap: Gap | None = None
    fix = ""


class NotYet(Unknown):
    """Raised by a check that compares with an earlier look, and has none yet."""

    gap = Gap.NOT_YET


class NoRight(Unknown):
    """Raised by a check whose user may not look at what `right`, a key of RIGHTS, names."""

    gap = Gap.RIGHTS

    def __init__(self, right: str, detail: str = "") -> None:
        super().__init__(f"user {os.geteuid()} may not read {right}{detail}")
        self.fix = f"{AS_ROOT}, or give this user the right: {RIGHTS[right]}"


class NoTool(Unknown):
    """Raised where a tool is not installed that a site may do without; `leaves` is what then shows
    nowhere."""

    gap = Gap.TOOL

    def __init__(self, lacks: str, get: str, leaves: str) -> None:
        super().__init__(f"{lacks}: {leaves}")
        self.fix = get


_ignores: Callable[[str], bool] | None = None  # of the check that runs


@contextmanager
def ignoring(ignores: Callable[[str], bool]) -> Iterator[None]:
    """What a check finds on devices that a site ignores is left out, and said."""
    global _ignores
    before, _ignores = _ignores, ignores
    try:
        yield
    finally:
        _ignores = before


class Findings:
    """Collects what a check finds on several devices, and makes one Result of it.

    The worst finding gives status, expectation and fix; all findings of that status are in `seen`.
    They are its users' only where all of them are.
    """

    def __init__(self) -> None:
        self._found: list[Result] = []
        self._ignored: dict[str, None] = {}
        self.metrics: dict[str, Metric] = {}
        self.facts: dict[str, str] = {}

    def add(
        self,
        status: Status,
        seen: str,
        *,
        expected: str = "",
        fix: str = "",
        device: str = "",
        shared: str = "",
        by_users: bool = False,
        corroborated: bool = False,
        gap: Gap | None = None,
    ) -> None:
        if device and _ignores is not None and _ignores(device):
            self._ignored[device] = None
            return
        devices = (device,) if device else ()
        self._found.append(
            Result(
                status=status,
                seen=f"{device}: {seen}" if device else seen,
                expected=expected,
                fix=fix,
                devices=devices,
                shared=shared,
                by_users=by_users,
                corroborated=corroborated,
                gap=gap,
            )
        )

    def warn(self, seen: str, **more: Any) -> None:
        self.add(Status.WARN, seen, **more)

    def fail(self, seen: str, **more: Any) -> None:
        self.add(Status.FAIL, seen, **more)

    def unknown(self, seen: str, **more: Any) -> None:
        self.add(Status.UNKNOWN, seen, **more)

    def unmeasured(self, why: Unknown, **more: Any) -> None:
        """What could not be measured, and why."""
        self.unknown(str(why), **{"fix": why.fix, "gap": why.gap} | more)

    def not_yet(self, seen: str, **more: Any) -> None:
        """Something that only the next look can compare with."""
        self.unknown(seen, gap=Gap.NOT_YET, **more)

    def metric(self, name: str, value: float, unit: str = "") -> None:
        self.metrics[name] = Metric(value=value, unit=unit)

    def fact(self, name: str, value: object) -> None:
        """Something that is the same on every healthy node of this kind."""
        self.facts[name] = str(value)

    def result(self, fine: str) -> Result:
        """`fine` is what is seen where nothing was found.

        What was not measured (a gap) says something only where nothing else does. What could not be
        measured hides no warning.
        """
        status = worst([Status.OK, *(f.status for f in self._found if f.gap is None)])
        found = [f for f in self._found if f.status is status and f.gap is None]
        gap, hidden = None, []
        if status is Status.UNKNOWN:
            hidden = [f for f in self._found if f.status is Status.WARN]
        elif status is Status.OK and (found := [f for f in self._found if f.gap is not None]):
            status = Status.UNKNOWN
            gap = min(
                (f.gap for f in found if f.gap), key=[Gap.RIGHTS, Gap.TOOL, Gap.NOT_YET].index
            )
            found = [f for f in found if f.gap is gap]
        told = [*found, *hidden]
        seen = "; ".join(dict.fromkeys(f.seen for f in told)) or fine
        if self._ignored:
            seen += f"; not judged (ignore): {', '.join(self._ignored)}"
        return Result(
            status=status,
            seen=seen,
            expected="; ".join(dict.fromkeys(f.expected for f in told if f.expected)),
            fix="; ".join(dict.fromkeys(f.fix for f in told if f.fix)),
            metrics=self.metrics,
            facts=self.facts,
            devices=tuple(dict.fromkeys(d for f in found for d in f.devices)),
            shared=next((f.shared for f in found if f.shared), ""),
            by_users=bool(found) and all(f.by_users for f in found),
            corroborated=any(f.corroborated for f in found),
            gap=gap,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One keyword argument of a check: a key of its configuration."""

    name: str
    hint: Any  # int, float, bool, str, Path, tuple[X, ...] or a dataclass
    about: About
    default: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A registered check."""

    name: str
    run: Callable[..., Result]
    tags: frozenset[str]
    deadline_s: float  # for one target
    call_deadline_s: float | None  # for one call that the check announces with ctx.announce
    resource: str  # what it shares a child and a hang with: "host", "nvml", "fs" …
    targets: Callable[..., Sequence[str]] | None  # probed apart, as mount points
    on_timeout: Status  # what a probe that does not answer means
    timeout_fix: str
    timeout_shared: Callable[..., str] | None = None  # what a hang shares, see Result
    blame: Blame
    cohort: Status | None  # what a fact that differs from the node's kind means
    drains: bool  # whether a FAIL of it may drain the node where the site allows that …
    by_users: bool = False  # … no: users can bring about any FAIL; a run keeps off the node
    witness: str = ""  # … but only where a check of this resource fails too, by other means
    untested: str  # what it was never run on, for the documentation

    @property
    def summary(self) -> str:
        return (self.run.__doc__ or "").strip().splitlines()[0]

    def options(self) -> dict[str, Option]:
        """Its configuration, from the signature."""
        hints = typing.get_type_hints(self.run, include_extras=True)
        found = {}
        for name, parameter in inspect.signature(self.run).parameters.items():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            hint, about = hints[name], None
            if typing.get_origin(hint) is typing.Annotated:
                hint, about = typing.get_args(hint)[:2]
            assert isinstance(about, About), f"{self.name}: {name} has no About"
            numbers = (int, float, tuple[int, ...], tuple[float, ...])
            if hint in numbers and about.ge is None:  # sizes, times, counts: none is negative
                about = replace(about, ge=0)
            found[name] = Option(name=name, hint=hint, about=about, default=parameter.default)
        return found


REGISTERED: dict[str, Check] = {}


def check(
    name: str,
    *,
    tags: Iterable[str],
    deadline_s: float = 5.0,
    call_deadline_s: float | None = None,
    resource: str = "host",
    targets: Callable[..., Sequence[str]] | None = None,
    on_timeout: Status = Status.UNKNOWN,
    timeout_fix: str = "",
    timeout_shared: Callable[..., str] | None = None,
    blame: Blame = Blame.NODE,
    cohort: Status | None = None,
    drains: bool = True,
    by_users: bool = False,
    witness: str = "",
    untested: str = "",
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Register a check.

    Checks of one `resource` share an expendable child and run one after another in the order in
    which they were registered. When one of them hangs, the others of a resource that is not "host"
    are not tried: they are UNKNOWN. With `targets(ctx, **options)` the check is called once for
    each target, as `run(ctx, target, **options)`, and each target is a resource of its own;
    `targets` must read nothing that can hang, and raises Skip where there is no target.
    `timeout_shared(ctx, target, **options)`, under the same rule, names the server that a target
    waits for which hangs. `untested` says what hardware the check was never run on.

    Raises ValueError for a name that is taken, a tag that does not exist, and a check that does not
    say what it is.
    """
    unknown = set(tags) - TAGS.keys()
    if unknown:
        raise ValueError(f"{name}: no tag {', '.join(sorted(unknown))}; valid: {', '.join(TAGS)}")

    def register(run: Callable[..., Result]) -> Callable[..., Result]:
        earlier = REGISTERED.get(name)
        if earlier is not None:
            raise ValueError(f"{name} is already a check, of {earlier.run.__module__}")
        if not (run.__doc__ or "").strip():
            raise ValueError(f"{name}: {run.__name__} needs a docstring, of one line at least")
        REGISTERED[name] = Check(
            name=name,
            run=run,
            tags=frozenset(tags),
            deadline_s=deadline_s,
            call_deadline_s=call_deadline_s,
            resource=resource,
            targets=targets,
            on_timeout=on_timeout,
            timeout_fix=timeout_fix,
            timeout_shared=timeout_shared,
            blame=blame,
            cohort=cohort,
            drains=drains,
            by_users=by_users,
            witness=witness,
            untested=untested,
        )
        return run

    return register
