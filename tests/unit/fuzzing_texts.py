"""For fuzzing.py: frames that a holder of the keys may send, and files that users write."""

from __future__ import annotations

import random
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from fuzzing import CORPUS, ODD, changed, mangled

from supervisor.channel import identity, wire
from supervisor.channel.spelling import ACTIONS_BY_TAG, EVENTS_BY_TAG
from supervisor.config import load_site, parse_job
from supervisor.config.document import read_text
from supervisor.core import events as ev
from supervisor.core.errors import UserError
from supervisor.core.machine import step
from supervisor.engine.registration import _unfit
from supervisor.run.journal import read, rebuild

ROOT = Path(__file__).parents[2]
WORDS = ["n1", "n2", "7", "101", "life-1", "a1/start/n1", "", "x" * 5000, "\x1b]0;x\x07", "\u202e"]
GOLDEN = ROOT / "tests" / "golden" / "files"


# --- wire


def _value(chance: random.Random, hint: Any) -> Any:
    """Plain data that fits an annotation, mostly."""
    if chance.random() < 0.005:
        return chance.choice([value for value in ODD if value != ()])
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return chance.choice(WORDS)
    if hint is str:
        return chance.choice(WORDS)
    if hint is bytes:
        return bytes(chance.randrange(20))
    if hint is bool:
        return chance.random() < 0.5
    if hint is int:
        return chance.choice((0, 1, 2, 7, 1013, -1, 2**53, 2**63 - 1))
    if hint is float:
        return chance.choice((0.0, 1.5, -1.0, 1e300))
    if hint is type(None):
        return None
    if origin is tuple:
        return [_value(chance, args[0]) for _ in range(chance.randrange(3))]
    if getattr(origin, "__name__", "") in ("dict", "Mapping"):
        return {chance.choice(WORDS): _value(chance, args[1]) for _ in range(2)}
    if args:  # a union
        return _value(chance, chance.choice(args))
    return _record(chance, hint)


def _record(chance: random.Random, kind: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, str):  # an enumeration
        return chance.choice([str(member.value) for member in kind])  # type: ignore[attr-defined]
    hints = typing.get_type_hints(kind)
    return {name: _value(chance, hint) for name, hint in hints.items() if not name.startswith("_")}


def _message(chance: random.Random) -> Any:
    kinds = typing.get_args(wire.ToEngine) + typing.get_args(wire.ToAgent)
    kind = chance.choice(kinds) if chance.random() < 0.4 else wire.AgentReport
    body = {"type": kind.__struct_config__.tag, **_record(chance, kind)}
    tables = {"event": EVENTS_BY_TAG, "action": ACTIONS_BY_TAG}
    for name, table in tables.items():
        if name in body:
            told = [tag for tag, kind in table.items() if issubclass(kind, ev.AgentEvent)]
            tag = chance.choice(told if told and chance.random() < 0.9 else list(table))
            body[name] = {"kind": tag, **_record(chance, table[tag])}
    return body


def frame(number: int) -> bytes:
    chance = random.Random(number)
    if number % 8 == 0:
        return chance.randbytes(chance.randrange(200))
    body = _message(chance)
    if number % 3 == 0:
        body = changed(chance, body)
    version = wire.WIRE if chance.random() < 0.95 else chance.choice((0, 2, "1", None))
    try:
        data = msgspec.msgpack.encode((version, body))
    except (OverflowError, UnicodeEncodeError, TypeError):  # no sender can write it
        return b""
    return mangled(chance, data) if number % 4 == 1 else data


def frames() -> Callable[..., str]:
    run = rebuild(read(CORPUS / "journal.sample"))
    assert run is not None

    def report(body: dict[str, Any]) -> str:
        try:
            event = wire.event_from({**body, "at": 2000.0})
        except wire.WireError:
            return "refused"
        if not isinstance(event, ev.AgentEvent):
            return "refused"
        step(run, event)  # as the engine does: what breaks here would end it
        return "taken"

    def check(number: int, data: bytes | None = None) -> str:
        data = frame(number) if data is None else data
        assert len(identity.speaker(data[:255]).key) in (0, 32)
        said = "refused"
        for unpack in (wire.unpack_for_engine, wire.unpack_for_agent):
            try:
                message = unpack(data)
            except wire.WireError as error:
                assert str(error)
                continue
            said = "read"
            match message:
                case wire.Hello():
                    assert len(_unfit(message)) < 200 and _unfit(message).isprintable()
                case wire.AgentReport():
                    said = report(message.event)
                case wire.Command():
                    try:
                        wire.action_from(message.action)
                    except wire.WireError:
                        said = "refused"
        return said

    return check


# --- what users write


def _samples(kind: str) -> list[bytes]:
    if kind == "job":
        return [path.read_bytes() for path in sorted((ROOT / "examples").glob("**/job*.yaml"))]
    return [
        b"state_dir: ~/s\nnode_dir: /tmp\nengine_ports: 20000-20010\nrank_ports: 30000-30999\n"
        b"checks: {disk.space: {warn: 80}}\nlog_cap_mb: 100\nengine_address: eth0\n"
    ]


def yaml_text(kind: str, number: int, samples: list[bytes]) -> bytes:
    chance = random.Random(number)
    sample = chance.choice(samples)
    lines = sample.splitlines(keepends=True)
    match number % 3:
        case 0:
            return mangled(chance, sample, chance.choice(samples))
        case 1:  # whole lines and words: more of these are YAML
            for _ in range(chance.randint(1, 4)):
                at = chance.randrange(len(lines))
                head, colon, _ = lines[at].partition(b":")
                word = chance.choice((b"", b"[]", b"{}", b"-1", b"x", b"1e999", b"!!python/x y"))
                more = chance.choice(
                    (b'"\\ud800"', b"&a [*a]", b"*a", b"null", b"\x1b[2J", b"[[[[")
                )
                lines[at] = head + colon + b" " + chance.choice((word, more)) + b"\n"
            return b"".join(lines)
        case _:
            chance.shuffle(lines)
            return b"".join(lines[: chance.randrange(len(lines) + 1)])


def texts(kind: str, folder: Path) -> Callable[..., str]:
    samples, path = _samples(kind), folder / f"{kind}.yaml"

    def check(number: int, data: bytes | None = None) -> str:
        path.write_bytes(yaml_text(kind, number, samples) if data is None else data)
        try:
            if kind == "job":
                parse_job(read_text(path), path)
            else:
                load_site({"HOME": str(folder)}, path)
        except UserError as error:
            said = str(error)
            assert said and len(said.splitlines()) == 1 and said.isprintable(), repr(said)
            return "refused"
        return "accepted"

    return check
