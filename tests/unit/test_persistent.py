"""Maps, sets and lists are values: whatever comes of one, it stays as it was."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.persistent import (
    FAR,
    Names,
    PersistentList,
    PersistentMap,
    PersistentSet,
    changed,
)
from supervisor.core.types import Attempt


class Parities(PersistentMap[int, int]):
    @staticmethod
    def groups_of(value: int) -> tuple[object, ...]:
        return value % 2, ("third", value % 3)


CHANGES = st.lists(
    st.tuples(
        st.integers(min_value=0, max_value=60),  # the version that is changed, from the newest
        st.integers(min_value=0, max_value=7),
        st.none() | st.integers(min_value=0, max_value=9),  # None: taken out
        st.booleans(),  # somebody reads an older version meanwhile
    ),
    max_size=60,
)


@given(CHANGES)
def test_every_version_stays_what_it_was(changes: list[tuple[int, int, int | None, bool]]) -> None:
    versions: list[tuple[Parities, dict[int, int]]] = [(Parities(), {})]
    for back, key, value, read in changes:
        some, model = versions[max(0, len(versions) - 1 - back)]
        if value is None:
            after = some.without(key)
            expected = {k: v for k, v in model.items() if k != key}
        else:
            after = some.put(key, value)
            expected = {**model, key: value}
        versions.append((after, expected))
        if read:
            older, as_it_was = versions[len(versions) // 2]
            assert {k: older.get(k) for k in range(8)} == {k: as_it_was.get(k) for k in range(8)}
    for some, model in versions:
        assert some == model and len(some) == len(model) and some == Parities(model)
        assert [k in some for k in range(8)] == [k in model for k in range(8)]
        assert list(some.items()) == list(model.items()), "the order"
        for group in (0, 1, ("third", 2)):
            members = {k for k, v in model.items() if group in Parities.groups_of(v)}
            assert {*some.group(group)} == members and some.size(group) == len(members)
            assert (some.first(group) in members) if members else some.first(group) is None


def test_a_map_that_is_gone_through_may_be_changed_meanwhile() -> None:
    some = PersistentMap({n: n for n in range(100)})
    for key, value in some.items():
        assert some.without(key).put(key + 1000, value) != some
    assert list(some) == list(range(100)) and list(some.values()) == list(range(100))


def test_a_change_costs_the_same_however_large_the_map_is() -> None:
    sizes = []
    for n in (10, 10_000):
        some = Parities({k: k for k in range(n)})
        assert some.size(0) == n // 2
        was = some._own()
        for k in range(n):
            some = some.put(k, k + 1).without(k).put(k, k + 2)
        assert some._own() is was, "it was copied"
        sizes.append(some.size(0))
    assert sizes == [5, 5_000]


def test_a_version_far_behind_is_copied_once() -> None:
    first = PersistentMap({k: k for k in range(3)})
    last = first
    for k in range(FAR + 2):
        last = last.put(100 + k, k)
    assert first[1] == 1 and first._data == {0: 0, 1: 1, 2: 2} and len(last) == FAR + 5


@given(st.lists(st.tuples(st.integers(0, 20), st.lists(st.integers(0, 5), max_size=4))))
def test_a_list_grows_and_each_version_stays(steps: list[tuple[int, list[int]]]) -> None:
    logs: list[tuple[PersistentList[int], tuple[int, ...]]] = [(PersistentList(), ())]
    for back, items in steps:
        log, model = logs[max(0, len(logs) - 1 - back)]
        logs.append((log.plus(items), (*model, *items)))
        fresh = tuple(i for i in items if i not in model)
        logs.append((log.plus_new(items), (*model, *fresh)))
    for log, model in logs:
        assert log == model and len(log) == len(model) and tuple(log) == model
        assert log[1:3] == model[1:3] and (not model or (log[-1], log[0]) == (model[-1], model[0]))


def test_sets_and_names_keep_their_order_and_find_what_is_in_them() -> None:
    some = PersistentSet("ca").add("b").add("a")
    assert list(some) == ["c", "a", "b"] and some == {"a", "b", "c"} and some >= {"a"}
    names = Names(["n2", "", "n1", ""])
    assert names == ("n2", "", "n1", "") and "n1" in names and "n3" not in names


def test_they_can_be_copied_and_stored() -> None:
    later = (old := PersistentMap({1: "a"})).put(2, "b")
    for value in (old, later, PersistentSet("ab"), Names("ab"), PersistentList("ab")):
        again: list[Any] = [copy.deepcopy(value), pickle.loads(pickle.dumps(value))]
        assert again == [value, value] and {type(one) for one in again} == {type(value)}


def test_changed_is_replace() -> None:
    attempt = Attempt(number=1, slots=Names("ab"), resume=None, save_dir=None)
    later = changed(attempt, step=5, started=("n1",))
    assert later == replace(attempt, step=5, started=PersistentSet(["n1"])) != attempt
    assert isinstance(later.started, PersistentSet), "as when it is made"
    with pytest.raises(TypeError, match="Attempt: no field stp"):
        changed(attempt, stp=5)
