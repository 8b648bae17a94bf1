"""What a health check is: a decorated function that looks at one thing and says what it found.

    @check("fs.local", tags={"preflight", "running"})
    def fs_local(ctx: Ctx, *, most: Annotated[int, About(doc="…", unit="%")] = 85) -> Result:
        \"""Local file systems have room left. …source of the threshold…\"""

Keyword arguments are the check's configuration: site.yaml, the command line and docs/checks.md take
them from the signature. A check knows nothing of deadlines, processes or output: the runner does.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from supervisor.core.setting import About

TAGS = {
    "preflight": "before a run, on an idle node; all of it under 10 s",
    "prolog": "cheap enough for Slurm's Prolog; all of it under 2 s",
    "running": "safe beside a training job",
    "deep": "loads GPUs, links or storage; idle nodes only, minutes",
}


class Status(StrEnum):
    """What a check found."""

    OK = "OK"
    WARN = "WARN"  # look at it; the node can be used
    FAIL = "FAIL"  # the node should not be used
    UNKNOWN = "UNKNOWN"  # could not be measured; neither good nor bad
    SKIP = "SKIP"  # does not apply to this node


WORST_FIRST = (Status.FAIL, Status.UNKNOWN, Status.WARN, Status.OK, Status.SKIP)


def worst(statuses: Iterable[Status]) -> Status:
    """SKIP where there is none."""
    return min(statuses, key=WORST_FIRST.index, default=Status.SKIP)


class Blame(StrEnum):
    """Whose a failure is. Only the node's own may drain it."""

    NODE = "node"
    SHARED = "shared"  # a server, a switch, the fabric: many nodes show it
    USER = "user"  # left behind or asked for by a job


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


class Skip(Exception):
    """Raised by a check that does not apply to this node; the text says why."""


class Unknown(Exception):
    """Raised by a check that could not measure; the text says why."""


class Findings:
    """Collects what a check finds on several devices, and makes one Result of it.

    The worst finding gives status, expectation and fix; all findings of that status are in `seen`.
    """

    def __init__(self) -> None:
        self._found: list[Result] = []
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
    ) -> None:
        devices = (device,) if device else ()
        self._found.append(
            Result(
                status=status,
                seen=f"{device}: {seen}" if device else seen,
                expected=expected,
                fix=fix,
                devices=devices,
                shared=shared,
            )
        )

    def warn(self, seen: str, **more: str) -> None:
        self.add(Status.WARN, seen, **more)

    def fail(self, seen: str, **more: str) -> None:
        self.add(Status.FAIL, seen, **more)

    def unknown(self, seen: str, **more: str) -> None:
        self.add(Status.UNKNOWN, seen, **more)

    def metric(self, name: str, value: float, unit: str = "") -> None:
        self.metrics[name] = Metric(value=value, unit=unit)

    def fact(self, name: str, value: object) -> None:
        """Something that is the same on every healthy node of this kind."""
        self.facts[name] = str(value)

    def result(self, fine: str) -> Result:
        """`fine` is what is seen where nothing was found."""
        status = worst([Status.OK, *(f.status for f in self._found)])
        found = [f for f in self._found if f.status is status]
        return Result(
            status=status,
            seen="; ".join(f.seen for f in found) or fine,
            expected="; ".join(dict.fromkeys(f.expected for f in found if f.expected)),
            fix="; ".join(dict.fromkeys(f.fix for f in found if f.fix)),
            metrics=self.metrics,
            facts=self.facts,
            devices=tuple(dict.fromkeys(d for f in found for d in f.devices)),
            shared=next((f.shared for f in found if f.shared), ""),
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
    look: Callable[..., Result]
    tags: frozenset[str]
    deadline_s: float  # for one target
    call_deadline_s: float | None  # for one call that the check announces with ctx.doing
    resource: str  # what it shares a child and a hang with: "host", "nvml", "fs" …
    each: Callable[..., Sequence[str]] | None  # the targets that are probed apart, as mount points
    hung: Status  # what a probe that does not answer means
    hung_fix: str
    hung_shared: Callable[..., str] | None = None  # what a hang shares, see Result
    blame: Blame
    cohort: Status | None  # what a fact that differs from the node's kind means
    drains: bool  # whether a FAIL of it may drain the node where the site allows that
    untried: str  # what it was never run on, for the documentation

    @property
    def summary(self) -> str:
        return (self.look.__doc__ or "").strip().splitlines()[0]

    def options(self) -> dict[str, Option]:
        """Its configuration, from the signature."""
        hints = typing.get_type_hints(self.look, include_extras=True)
        found = {}
        for name, parameter in inspect.signature(self.look).parameters.items():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            hint, about = hints[name], None
            if typing.get_origin(hint) is typing.Annotated:
                hint, about = typing.get_args(hint)[:2]
            assert isinstance(about, About), f"{self.name}: {name} has no About"
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
    each: Callable[..., Sequence[str]] | None = None,
    hung: Status = Status.UNKNOWN,
    hung_fix: str = "",
    hung_shared: Callable[..., str] | None = None,
    blame: Blame = Blame.NODE,
    cohort: Status | None = None,
    drains: bool = True,
    untried: str = "",
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Register a check.

    Checks of one `resource` share an expendable child and run one after another in the order in
    which they were registered. When one of them hangs, the others of a resource that is not "host"
    are not tried: they are UNKNOWN. With `each(ctx, **options)` the check is called once for each
    target, as `look(ctx, target, **options)`, and each target is a resource of its own; `each` must
    read nothing that can hang, and raises Skip where there is no target. `hung_shared(ctx,
    target, **options)`, under the same rule, names the server that a target waits for which hangs.

    Raises ValueError for a name that is taken, a tag that does not exist, and a check that does not
    say what it is.
    """
    unknown = set(tags) - TAGS.keys()
    if unknown:
        raise ValueError(f"{name}: no tag {', '.join(sorted(unknown))}; valid: {', '.join(TAGS)}")

    def register(look: Callable[..., Result]) -> Callable[..., Result]:
        earlier = REGISTERED.get(name)
        if earlier is not None:
            raise ValueError(f"{name} is already a check, of {earlier.look.__module__}")
        if not (look.__doc__ or "").strip():
            raise ValueError(f"{name}: {look.__name__} needs a docstring, of one line at least")
        REGISTERED[name] = Check(
            name=name,
            look=look,
            tags=frozenset(tags),
            deadline_s=deadline_s,
            call_deadline_s=call_deadline_s,
            resource=resource,
            each=each,
            hung=hung,
            hung_fix=hung_fix,
            hung_shared=hung_shared,
            blame=blame,
            cohort=cohort,
            drains=drains,
            untried=untried,
        )
        return look

    return register
