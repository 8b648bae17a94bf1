"""What is said arrives as it was said; what can't be understood is refused in one line."""

from __future__ import annotations

import enum
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.channel import wire
from supervisor.core.actions import ACTIONS, Action, AgentCommand
from supervisor.core.errors import UserError
from supervisor.core.events import EVENTS, Event
from supervisor.core.machine import record_only
from supervisor.core.policy import Policy
from supervisor.core.transition import HANDLERS
from supervisor.core.types import RunSpec
from supervisor.engine.effects import PERFORM

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SIMPLE = {
    int: st.integers(-(2**53), 2**53),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: text,
    bytes: st.binary(max_size=20),
    bool: st.booleans(),
    type(None): st.none(),
}


def value_of(kind: typing.Any) -> st.SearchStrategy[typing.Any]:
    """Values of an annotation."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind in SIMPLE:
        return SIMPLE[kind]
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*[value_of(arg) for arg in args])
    if origin is tuple and args[-1] is Ellipsis:
        return st.lists(value_of(args[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*[value_of(arg) for arg in args])
    if origin in (dict, Mapping):
        if args[1] is typing.Any:
            return st.dictionaries(text, st.one_of(text, st.integers(0, 9)), max_size=3)
        return st.dictionaries(value_of(args[0]), value_of(args[1]), max_size=3)
    if issubclass(kind, enum.Enum):
        return st.sampled_from(kind)
    assert is_dataclass(kind) or issubclass(kind, msgspec.Struct), kind
    return made(kind)


def made(kind: type) -> st.SearchStrategy[typing.Any]:
    hints = typing.get_type_hints(kind)
    names = (
        [f.name for f in fields(kind)]
        if is_dataclass(kind)
        else [f.name for f in msgspec.structs.fields(kind)]
    )
    return st.builds(kind, **{name: value_of(hints[name]) for name in names})


KINDS = [*EVENTS.values(), *ACTIONS.values()]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@settings(max_examples=12, deadline=None)
@given(st.data())
def test_every_event_and_action_comes_back_from_journal_and_wire(kind, data):
    item = data.draw(made(kind))
    back = wire.event_from if isinstance(item, Event) else wire.action_from
    assert back(wire.plain(item)) == item
    assert back(msgspec.json.decode(msgspec.json.encode(wire.plain(item)))) == item
    assert back(msgspec.msgpack.decode(msgspec.msgpack.encode(wire.plain(item)))) == item


def test_every_event_and_action_that_exists_has_a_name():
    def leaves(kind: type) -> set[str]:  # by name: with slots, each class is made twice
        subs = kind.__subclasses__()
        return set().union(*[leaves(s) for s in subs]) if subs else {kind.__name__}

    assert leaves(Event) - {"AgentEvent"} == set(EVENTS)
    assert leaves(Action) - {"AgentCommand"} == set(ACTIONS)


def test_every_event_has_a_handler_of_its_own_class():
    assert set(HANDLERS) == set(EVENTS.values())
    for kind, handler in HANDLERS.items():
        if handler is not record_only:
            assert typing.get_type_hints(handler)["event"] is kind


def test_every_action_is_performed_by_the_engine_or_sent_to_an_agent():
    sent = {kind for kind in ACTIONS.values() if issubclass(kind, AgentCommand)}
    assert set(ACTIONS.values()) == sent | set(PERFORM) and not sent & set(PERFORM)


TO_ENGINE = typing.get_args(wire.ToEngine)
TO_AGENT = typing.get_args(wire.ToAgent)


@pytest.mark.parametrize("kind", [*TO_ENGINE, *TO_AGENT], ids=lambda k: k.__name__)
@settings(max_examples=12, deadline=None)
@given(st.data())
def test_every_message_comes_back_and_only_to_its_side(kind, data):
    message = data.draw(made(kind))
    frame = wire.pack(message)
    mine, other = wire.unpack_for_engine, wire.unpack_for_agent
    if kind in TO_AGENT:
        mine, other = other, mine
    assert mine(frame) == message
    with pytest.raises(wire.WireError):
        other(frame)


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    said = str(error.value)
    assert said and "\n" not in said
    return said


BEAT = {"type": "Beat", "agent": "x", "attempt": 1, "ranks": 1, "step": 1, "loss": 2.0}


def frame(version: object, body: object) -> bytes:
    return msgspec.msgpack.encode((version, body))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a superv message"),
        (b"\xc1", "not a superv message"),
        (b"GET / HTTP/1.1\r\n", "not a superv message"),
        (frame("1", BEAT), "not a superv message"),
        (frame(wire.WIRE + 1, BEAT), f"speaks wire version {wire.WIRE + 1}; this side speaks"),
        (frame(wire.WIRE + 1, {"new": "shape"}), "speaks wire version"),
        (frame(wire.WIRE, {**BEAT, "type": "Shout"}), "bad message from an agent"),
        (frame(wire.WIRE, {**BEAT, "mood": "good"}), "mood"),
        (frame(wire.WIRE, {**BEAT, "step": "five"}), "step"),
        (frame(wire.WIRE, {"type": "Beat"}), "missing required field"),
        (frame(wire.WIRE, BEAT)[:-3], "not a superv message"),
    ],
)
def test_what_an_agent_may_not_say_is_refused_in_one_line(data, said):
    with pytest.raises(wire.WireError) as error:
        wire.unpack_for_engine(data)
    assert said in one_line(error)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_no_bytes_at_all_do_more_than_be_refused(data, enveloped):
    if enveloped:
        data = b"\x92" + bytes([wire.WIRE]) + data
    for unpack in (wire.unpack_for_engine, wire.unpack_for_agent):
        try:
            unpack(data)
        except wire.WireError as error:
            assert "\n" not in str(error)


HEARD = {"kind": "NodeHeard", "at": 1.0, "node": "n1"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "unknown kind None"),
        ({**HEARD, "kind": "Teleported"}, "unknown kind 'Teleported'"),
        ({**HEARD, "kind": ["NodeHeard"]}, "unknown kind"),
        ({**HEARD, "mood": "good"}, "NodeHeard: unknown field 'mood'"),
        ({**HEARD, "at": "noon"}, "NodeHeard: "),
        ({"kind": "NodeHeard", "at": 1.0}, "NodeHeard: "),
        ({**HEARD, "at": float("nan")}, "not finite"),
        ({**HEARD, "at": float("inf")}, "not finite"),
    ],
)
def test_an_event_that_makes_no_sense_is_refused_in_one_line(data, said):
    with pytest.raises(wire.WireError) as error:
        wire.event_from(data)
    assert said in one_line(error)


def test_an_order_is_no_event_and_an_event_no_order():
    with pytest.raises(wire.WireError):
        wire.action_from(HEARD)
    with pytest.raises(wire.WireError):
        wire.event_from({"kind": "Leave", "key": "k", "node": "n1", "attempt": 1})


def test_a_number_that_is_not_finite_is_found_however_deep():
    exit = {"node": "n1", "rank": 0, "code": 1, "signal": None, "at": float("nan")}
    with pytest.raises(wire.WireError, match="not finite"):
        wire.event_from({"kind": "RankExited", "at": 1.0, "attempt": 1, "exit": exit})


def test_an_older_journals_launch_without_newer_settings_is_read_with_their_defaults():
    data = {
        "kind": "Launched",
        "at": 1.0,
        "spec": {
            "name": "moe",
            "run_id": "0123456789ab",
            "nodes": 2,
            "spares": 1,
            "ranks_per_node": 8,
            "checkpoint_dir": None,
            "policy": {},
        },
    }
    launched = wire.event_from(data)
    assert isinstance(launched.spec, RunSpec) and launched.spec.policy == Policy()


# --- the key file -------------------------------------------------------------------------------

KEYS = wire.Keys(
    wire=wire.WIRE,
    run_id="0123456789ab",
    endpoint="tcp://10.0.0.1:5555",
    server_key="s",
    public_key="p",
    secret_key="very secret",
)


def key_file(tmp_path, content: bytes | None = None, mode: int = 0o600) -> str:
    path = tmp_path / "keys"
    path.write_bytes(msgspec.json.encode(KEYS) if content is None else content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_key_file_is_read(tmp_path, mode):
    assert wire.read_keys(key_file(tmp_path, mode=mode)) == KEYS


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666, 0o601])
def test_a_key_file_that_others_can_touch_is_refused(tmp_path, mode):
    with pytest.raises(UserError, match="mode 0600, owned by you") as error:
        wire.read_keys(key_file(tmp_path, mode=mode))
    assert "secret" not in one_line(error)


def test_a_key_file_of_another_owner_is_refused(tmp_path):
    if os.getuid() != 0:
        pytest.skip("only root can give a file away")
    path = key_file(tmp_path)
    os.chown(path, 12345, 12345)
    with pytest.raises(UserError, match="owned by you"):
        wire.read_keys(path)


def test_a_link_a_pipe_a_directory_and_a_device_are_refused_and_none_hangs(tmp_path):
    target = key_file(tmp_path)
    odd = [tmp_path / "link", tmp_path / "pipe", tmp_path / "directory"]
    odd[0].symlink_to(target)
    os.mkfifo(odd[1], 0o600)
    odd[2].mkdir(0o700)
    for path in odd:
        with pytest.raises(UserError, match="must be a regular file of mode 0600"):
            wire.read_keys(str(path))


def test_no_key_file_yet_is_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError):
        wire.read_keys(str(tmp_path / "keys"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a key file"),
        (b"very secret", "not a key file"),
        (msgspec.json.encode({**msgspec.to_builtins(KEYS), "more": 1}), "more"),
        (msgspec.json.encode(msgspec.structs.replace(KEYS, wire=99)), "wire version 99"),
    ],
)
def test_a_key_file_that_makes_no_sense_is_refused_in_one_line(tmp_path, content, said):
    with pytest.raises(UserError, match=said) as error:
        wire.read_keys(key_file(tmp_path, content))
    assert "secret" not in one_line(error)
