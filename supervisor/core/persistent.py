"""Values of thousands of entries whose successors cost no copy.

A run holds thousands of nodes, orders and ends of ranks, and an event changes one of them. So the
newest version of a map owns a dict, and the one before it keeps only what was different (H.
Baker, "Shallow binding makes functional arrays fast", 1991). To change the newest, and to read it
or one of the few before it, costs the same however large it is; a version that is read much later,
as a whole, or changed a second time is copied first.
"""

from __future__ import annotations

import functools
from collections.abc import (
    Hashable,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Set,
    ValuesView,
)
from dataclasses import fields
from operator import attrgetter, itemgetter
from typing import Any, Self, TypeVar, overload

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

FAR = 16  # changes; a version that is further from the newest one is copied to be read
_ABSENT: Any = object()
_Groups = dict[object, dict[Any, None]]  # by name: keys


@functools.cache
def _fields(kind: type) -> tuple[frozenset[str], Any, tuple[tuple[str, Any], ...]]:
    """Of a frozen dataclass with slots: its fields' names, what reads all, and what sets each."""
    names = tuple(field.name for field in fields(kind))
    setters = tuple((name, getattr(kind, name).__set__) for name in names)
    return frozenset(names), attrgetter(*names), setters


def changed(value: V, **changes: Any) -> V:
    """The value with other fields: as `dataclasses.replace`, in a third of the time (3 us for 10
    with a Run), which is most of what a step takes. Raises TypeError for a field that is none."""
    names, read, setters = _fields(type(value))  # type: ignore[arg-type]
    if not changes.keys() <= names:
        raise TypeError(f"{type(value).__name__}: no field {sorted({*changes} - names)[0]}")
    new: V = object.__new__(type(value))
    for (name, assign), old in zip(setters, read(value), strict=True):
        assign(new, changes.get(name, old))
    if (check := getattr(new, "__post_init__", None)) is not None:
        check()
    return new


class PersistentMap(Mapping[K, V]):
    """A mapping that never changes; `put` and `without` give the next one.

    Entries stand in the order in which they came. A subclass may sort its values into groups, whose
    members and size are known without a search.
    """

    __slots__ = ("_born", "_data", "_groups", "_key", "_next", "_old", "_place", "_size")

    _data: dict[K, V] | None  # None: this is `_next`, but for `_key`
    _born: dict[K, int]  # the order of the keys, kept for versions that have those taken out since
    _groups: _Groups | None  # None: nobody has asked for them yet
    _next: PersistentMap[K, V]
    _key: K
    _old: V  # what `_key` has here; _ABSENT: nothing
    _place: int  # … and its place in the order

    def __init__(self, items: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        self._data = dict(items)
        self._born = {key: place for place, key in enumerate(self._data)}
        self._size = len(self._data)
        self._groups = None

    @staticmethod
    def groups_of(value: Any) -> tuple[object, ...]:
        """The groups that a value belongs to."""
        return ()

    def put(self, key: K, value: V) -> Self:
        """The map with this value too, or instead of the one that the key has."""
        return self._changed(key, value)

    def without(self, key: K) -> Self:
        """The map without the key, whether it is there or not."""
        return self._changed(key, _ABSENT) if key in self else self

    def size(self, group: object) -> int:
        return len(self._grouped().get(group, ()))

    def group(self, name: object) -> tuple[K, ...]:
        """The keys whose values belong to the group, in the order in which they came to it."""
        return tuple(self._grouped().get(name, ()))

    def first(self, group: object) -> K | None:
        """The first key of the group."""
        return next(iter(self._grouped().get(group, ())), None)

    def _grouped(self) -> _Groups:
        data = self._own()
        if self._groups is None:
            self._groups = {}
            for key, value in data.items():
                _sort(self._groups, key, (), self.groups_of(value))
        return self._groups

    def _changed(self, key: K, value: V) -> Self:
        data, groups, born = self._own(), self._groups, self._born
        old, place = data.get(key, _ABSENT), born.get(key, 0)
        if groups is not None:
            before = () if old is _ABSENT else self.groups_of(old)
            _sort(groups, key, before, () if value is _ABSENT else self.groups_of(value))
        if value is _ABSENT:
            del data[key], born[key]
        else:
            data[key] = value
            if old is _ABSENT:
                born[key] = 1 + born[next(reversed(born))] if born else 0
        new = object.__new__(type(self))
        new._data, new._born, new._groups, new._size = data, born, groups, len(data)
        self._data, self._groups = None, None
        del self._born
        self._next, self._key, self._old, self._place = new, key, old, place
        return new

    def _own(self) -> dict[K, V]:
        """The dict of this very version: a copy where a later one has it."""
        if self._data is None:
            later: list[PersistentMap[K, V]] = []
            at: PersistentMap[K, V] = self
            while at._data is None:
                later.append(at)
                at = at._next
            data, born, in_order = dict(at._data), dict(at._born), True
            for at in reversed(later):
                if at._old is _ABSENT:
                    del data[at._key], born[at._key]
                else:
                    in_order = in_order and at._key in data
                    data[at._key], born[at._key] = at._old, at._place
            if not in_order:
                born = dict(sorted(born.items(), key=itemgetter(1)))
                data = {key: data[key] for key in born}
            self._data, self._born = data, born
            del self._next, self._key, self._old, self._place
        return self._data

    def __getitem__(self, key: K) -> V:
        at: PersistentMap[K, V] = self
        for _ in range(FAR):
            if at._data is not None:
                return at._data[key]
            if at._key == key:
                if at._old is _ABSENT:
                    raise KeyError(key)
                return at._old
            at = at._next
        return self._own()[key]

    def get(self, key: K, default: Any = None) -> Any:
        data = self._data
        if data is not None:
            return data.get(key, default)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        data = self._data
        return key in data if data is not None else super().__contains__(key)

    # Whoever goes through a map may change it meanwhile: what was begun goes on as it was.

    def __iter__(self) -> Iterator[K]:
        return iter(tuple(self._own()))

    def values(self) -> ValuesView[V]:
        return _Values(self)

    def items(self) -> ItemsView[K, V]:
        return _Items(self)

    def __len__(self) -> int:
        return self._size

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, PersistentMap):
            return self._own() == other._own()
        return self._own() == other if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._own()!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self._own()),)


class _Values(ValuesView[V]):
    _mapping: PersistentMap[Any, V]

    def __iter__(self) -> Iterator[V]:
        return iter(tuple(self._mapping._own().values()))


class _Items(ItemsView[K, V]):
    _mapping: PersistentMap[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return iter(tuple(self._mapping._own().items()))


def _sort(groups: _Groups, key: Any, before: tuple[object, ...], now: tuple[object, ...]) -> None:
    if before == now:
        return
    for one in before:
        if one not in now:
            del groups[one][key]
            if not groups[one]:
                del groups[one]
    for one in now:
        if one not in before:
            groups.setdefault(one, {})[key] = None


class PersistentSet(Set[K]):
    """A set that never changes, in the order in which its members came; `add` gives the next."""

    __slots__ = ("_members",)

    def __init__(self, members: Iterable[K] = ()) -> None:
        self._members: PersistentMap[K, None] = PersistentMap((one, None) for one in members)

    def add(self, one: K) -> PersistentSet[K]:
        if one in self._members:
            return self
        new: PersistentSet[K] = object.__new__(PersistentSet)
        new._members = self._members.put(one, None)
        return new

    def __contains__(self, one: object) -> bool:
        return one in self._members

    def __iter__(self) -> Iterator[K]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"PersistentSet({list(self)!r})"


class Names(tuple[str, ...]):
    """A tuple of names that knows where each stands."""

    def __new__(cls, names: Iterable[str] = ()) -> Names:
        return names if isinstance(names, Names) else super().__new__(cls, names)

    def __contains__(self, name: object) -> bool:
        return name in self._places()

    def _places(self) -> Mapping[object, int]:
        places: dict[object, int] | None = self.__dict__.get("places")
        if places is None:
            places = self.__dict__["places"] = {}
            for place, name in enumerate(self):
                places.setdefault(name, place)
        return places

    def __reduce__(self) -> tuple[Any, ...]:
        return Names, (tuple(self),)


class PersistentList(Sequence[V]):
    """A sequence that never changes; `plus` gives a longer one, which shares this one's items."""

    __slots__ = ("_items", "_length", "_places")

    def __init__(self, items: Iterable[V] = ()) -> None:
        self._items = list(items)
        self._length = len(self._items)
        self._places: dict[Hashable, int] | None = None  # by what tells items apart; None: not yet

    @staticmethod
    def told_apart_by(item: Any) -> Hashable:
        """What makes an item another one for `plus_new`."""
        return item  # type: ignore[no-any-return]

    def plus(self, items: Iterable[V]) -> Self:
        shared = self if len(self._items) == self._length else type(self)(self)
        new = object.__new__(type(self))
        new._items, new._places = shared._items, shared._places
        for item in items:
            if new._places is not None:
                new._places.setdefault(self.told_apart_by(item), len(new._items))
            new._items.append(item)
        new._length = len(new._items)
        return new

    def plus_new(self, items: Iterable[V]) -> Self:
        """With those that are not in it."""
        if self._places is None:
            self._places = {}
            for place, item in enumerate(self._items):
                self._places.setdefault(self.told_apart_by(item), place)
        known = self._places
        return self.plus(
            [i for i in items if known.get(self.told_apart_by(i), self._length) >= self._length]
        )

    @overload
    def __getitem__(self, place: int) -> V: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[V, ...]: ...
    def __getitem__(self, place: int | slice) -> V | tuple[V, ...]:
        if isinstance(place, slice):
            return tuple(self)[place]
        if not -self._length <= place < self._length:
            raise IndexError(place)
        return self._items[place if place >= 0 else self._length + place]

    def __iter__(self) -> Iterator[V]:
        return iter(self._items[: self._length])

    def __len__(self) -> int:
        return self._length

    def __eq__(self, other: object) -> bool:
        return (
            tuple(self) == tuple(other)
            if isinstance(other, PersistentList | tuple)
            else NotImplemented
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)!r})"
