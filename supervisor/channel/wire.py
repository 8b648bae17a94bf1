"""Messages between engine and agents, and the keys of a run.

One message is one frame: msgpack of [WIRE, body]. Whoever receives another WIRE number answers with
one line and reads no further. CURVE encrypts and authenticates the server; the list of allowed
client keys is the engine's (CURVE alone admits anyone who has the server's public key).
"""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import stat
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from supervisor.channel import spelling
from supervisor.core.actions import Action
from supervisor.core.container import Container
from supervisor.core.errors import UserError
from supervisor.core.events import Event
from supervisor.core.signs_of_life import Signs

T = TypeVar("T")

WIRE = 1
MAX_MESSAGE = 4 * 1024 * 1024  # bytes; a larger one is dropped by the socket


class WireError(Exception):
    """A message that can't be taken; the text says why in one line."""


class Keys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an agent needs to reach its engine. A secret: lives in files of mode 0600 only."""

    wire: int
    run_id: str
    endpoint: str
    server_key: str
    public_key: str
    secret_key: str


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The health checks that an agent runs, in a process of their own."""

    tags: tuple[str, ...]  # before ranks run; none: a node is taken as it is
    running_s: float  # how often the `running` suite runs beside ranks; 0: never
    deadline_s: float
    settings: dict[str, dict[str, Any]] = {}


class RankJob(
    msgspec.Struct, frozen=True, kw_only=True, rename={"engine_lost_timeout_s": "orphan_s"}
):
    """How the ranks of the run are started; the same for every attempt."""

    run_id: str
    name: str
    python: str  # the trainer's interpreter; empty where the arguments are a whole command
    fresh: tuple[str, ...]  # arguments of a rank that starts anew, with {placeholders}
    resumed: tuple[str, ...]  # arguments of a rank that resumes
    # Of either, where the hook sets what these two add for hooks of older agents; empty: use those.
    entry: tuple[str, ...] = ()
    preload: tuple[str, ...]  # modules of the warm starter; none: ranks start cold
    hook: str  # the adapter inside the ranks, or empty
    workdir: str
    env: dict[str, str]
    secret: tuple[str, ...] = ()  # variables of env that are shown nowhere, and taken as they are
    ranks_per_node: int
    step_pattern: str
    resumed_pattern: str
    rank_ports: tuple[int, int]  # MASTER_PORT comes from this range, both ends included
    log_cap: int  # bytes kept of one rank's log
    engine_lost_timeout_s: float
    code: str = ""  # names the copy of the trainer's code; empty: it is read where it is
    path: str = ""  # where a module of the trainer is looked for first; empty: as Python does
    container: Container | None = None  # what ranks run in; None: nothing but the node
    health: Health | None = None  # which health checks the agent runs; None: none
    # The engine is no 0.1, which refuses what it does not know: Signs in heartbeats, RanksExited.
    newer_than_0_1: bool = False


# --- agent → engine ---------------------------------------------------------------------------


class Hello(msgspec.Struct, tag=True, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An agent registers."""

    run_id: str
    node: str
    job_id: str
    address: str
    port: int
    agent: str
    version: str
    epoch: int  # the highest that it has obeyed
    problems: tuple[str, ...] = ()
    attempt: int | None = None
    ranks: int = 0
    facts: dict[str, str] = {}


class Heartbeat(
    msgspec.Struct,
    tag="Beat",
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """Alive; sent once a second, and at once when a new step is seen."""

    agent: str
    attempt: int | None
    ranks: int
    step: int | None
    loss: float | None
    # Of the local rank that is furthest behind, where a hook tells it; written even where it is "".
    phase: str = msgspec.field(default_factory=str)
    signs: Signs | None = None


class AgentReport(
    msgspec.Struct, tag="Report", frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """An event that must not get lost: repeated until it is acknowledged."""

    agent: str
    seq: int
    event: dict[str, Any]


class Chunk(msgspec.Struct, tag=True, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A piece of a rank's log."""

    key: str
    offset: int  # where the data begins in the log
    data: bytes
    error: str = ""


class HealthReport(
    msgspec.Struct, tag="Looked", frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """A whole report of health checks, for the fleet record and for whoever asked."""

    agent: str
    key: str  # of the HealthQuery; empty where nobody asked
    report: str  # the JSON document of docs/checks.md; empty where there is none
    error: str = ""


# --- engine → agent ---------------------------------------------------------------------------


class Welcome(msgspec.Struct, tag=True, frozen=True, kw_only=True, forbid_unknown_fields=True):
    epoch: int
    agent: str
    job: RankJob


class Refused(msgspec.Struct, tag=True, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine does not take this agent; it ends with the reason."""

    why: str


class ReRegister(
    msgspec.Struct, tag="WhoAreYou", frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """A heartbeat came from somebody who never said hello to this engine."""

    epoch: int


class Ack(msgspec.Struct, tag=True, frozen=True, kw_only=True, forbid_unknown_fields=True):
    epoch: int
    seq: int | None = None  # the report that was journaled; None answers a heartbeat


class Command(msgspec.Struct, tag="Do", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An order; obeyed when its epoch is the highest that the agent has seen."""

    epoch: int
    action: dict[str, Any]


class Fetch(msgspec.Struct, tag=True, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bring a piece of a rank's log; a negative offset counts from the end."""

    epoch: int
    key: str
    attempt: int
    rank: int
    offset: int
    limit: int
    wait_s: float  # how long to wait for more when there is none


class HealthQuery(
    msgspec.Struct, tag="Look", frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Run health checks and bring the report."""

    epoch: int
    key: str
    order: str  # JSON for `python -m healthchecks`
    deadline_s: float


ToEngine = Hello | Heartbeat | AgentReport | Chunk | HealthReport
ToAgent = Welcome | Refused | ReRegister | Ack | Command | Fetch | HealthQuery

_envelope = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_to_agent: msgspec.msgpack.Decoder[ToAgent] = msgspec.msgpack.Decoder(ToAgent)


# Bytes that are no text, and arrays within arrays, have exceptions of their own.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def pack(message: ToEngine | ToAgent) -> bytes:
    return msgspec.msgpack.encode((WIRE, message))


def _body(frame: bytes | memoryview) -> msgspec.Raw:
    try:
        wire, body = _envelope.decode(frame)
    except UNREADABLE as error:
        raise WireError(f"not a superv message: {error}") from None
    if wire != WIRE:
        raise WireError(f"speaks wire version {wire}; this side speaks {WIRE}")
    return body


def unpack_for_engine(frame: bytes | memoryview) -> ToEngine:
    """Raises WireError."""
    try:
        return _to_engine.decode(_body(frame))
    except UNREADABLE as error:
        raise WireError(f"bad message from an agent: {error}") from None


def unpack_for_agent(frame: bytes) -> ToAgent:
    """Raises WireError."""
    try:
        return _to_agent.decode(_body(frame))
    except UNREADABLE as error:
        raise WireError(f"bad message from the engine: {error}") from None


# --- events and actions as plain data ---------------------------------------------------------


def plain(item: Event | Action) -> dict[str, Any]:
    """An event or action as a mapping that names its kind."""
    kind = type(item)
    return {"kind": spelling.tag(kind), **spelling.written(kind, msgspec.to_builtins(item))}


def event_from(data: dict[str, Any]) -> Event:
    """Raises WireError where the kind is unknown or a field does not fit."""
    return _convert(data, spelling.EVENTS_BY_TAG)


def action_from(data: dict[str, Any]) -> Action:
    """Raises WireError where the kind is unknown or a field does not fit."""
    return _convert(data, spelling.ACTIONS_BY_TAG)


def _convert(data: dict[str, Any], kinds: Mapping[str, type[T]]) -> T:
    tag = str(data.get("kind"))
    kind = kinds.get(tag)
    if kind is None:
        raise WireError(f"unknown kind {data.get('kind')!r}")
    data = spelling.read(kind, {name: value for name, value in data.items() if name != "kind"})
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(data.keys() - known):
        raise WireError(f"{tag}: unknown field {unknown[0]!r}")
    if not _finite(data):
        raise WireError(f"{tag}: holds a number that is not finite, or beyond 64 bits")
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise WireError(f"{tag}: {error}") from None


def _finite(item: Any) -> bool:
    """JSON, and so the journal, has no word for infinity and NaN, and msgpack none for 2**63."""
    if isinstance(item, float):
        return math.isfinite(item)
    if isinstance(item, int):
        return -(2**63) <= item < 2**63
    if isinstance(item, dict):
        return all(_finite(value) for value in item.values())
    return not isinstance(item, list | tuple) or all(_finite(value) for value in item)


def code_path(keys_path: str, digest: str) -> str:
    """Where the packed code of the trainer is delivered: beside the keys."""
    return f"{keys_path.removesuffix('.key')}.{digest}.code"


# --- the key file -----------------------------------------------------------------------------


def read_keys(path: str) -> Keys:
    """The keys in a file that nobody else can read or swap.

    Raises FileNotFoundError where there is none yet, UserError where it is not to be trusted.
    """
    untrusted = UserError(f"{path}: the key file must be a regular file of mode 0600, owned by you")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EACCES, errno.ENXIO):  # a link, another's, a socket
            raise untrusted from None
        raise
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
            raise untrusted
        data = os.read(fd, 65536)
    finally:
        os.close(fd)
    try:
        keys = msgspec.json.decode(data, type=Keys)
    except msgspec.DecodeError as error:
        raise UserError(f"{path}: not a key file: {error}") from None
    if keys.wire != WIRE:
        raise UserError(f"{path}: wire version {keys.wire}, this superv speaks {WIRE}")
    return keys
