"""A pytest plugin: collects the tests once, then runs for each mutant, in a fork, those it needs.

It works in a copy of the tree, its current folder; SUPERV_MUTANTS names a file with what to do.
"""

from __future__ import annotations

import gc
import json
import os
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from tests.mutants.loading import Places, become, ready, share_a_tree, stand_in_for_workers
from tests.mutants.mutations import Mutant, mutants

_BROAD, _BROAD_TESTS = 150, 6  # functions that a test calls; how many such tests are enough
_GRACE_S = 20.0  # beside ten times what the tests took


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    order = json.loads(Path(os.environ["SUPERV_MUTANTS"]).read_text())
    stand_in_for_workers(Path(order["scratch"]))
    share_a_tree()
    trials = Trials(session.items, Path(order["scratch"]))
    with open(order["log"], "a", buffering=1) as log:
        print(json.dumps({"unfit": trials.unfit}), file=log)
        for file, numbers in order["mutants"].items():
            source = Path(file).read_text()
            ready(file)
            all_of_it = list(mutants(file, source))
            for number in numbers:
                began = time.monotonic()
                row = trials.of(all_of_it[number], source)
                print(json.dumps({**row, "took_s": time.monotonic() - began}), file=log)
    return True


class Trials:
    """The tests, what each of them calls, and how long it takes; all that was seen in one run."""

    def __init__(self, items: Sequence[pytest.Item], scratch: Path) -> None:
        self._running = 0  # the process group of the trial, where there is one
        signal.signal(signal.SIGTERM, self._end)
        self._items = {item.nodeid: item for item in items}
        self._scratch = scratch
        self._sound: dict[str, set[str]] = {}  # file → tests that pass after it was loaded again
        self._calls: dict[str, set[tuple[str, int]]] = {}
        self._took_s: dict[str, float] = {}
        self._places = Places()
        for row in self._forked(lambda: self._record(items), 3600.0):
            self._calls[row["test"]] = {(file, int(line)) for file, line in row["calls"]}
            self._took_s[row["test"]] = row["took_s"]
        self.unfit = [test for test in self._items if test not in self._calls]  # fail unbroken
        gc.freeze()

    def of(self, mutant: Mutant, source: str) -> dict[str, Any]:
        """What came of a mutant: {"mutant": …, "tests": how many, "red": the first or ""}."""
        file = mutant.file
        if file not in self._sound:
            its = self._choose({place for place in self._places.starts if place[0] == file})
            same = Mutant(file, 0, "the same", source)
            red = {row["red"] for row in self._forked(lambda: self._try(same, its, False), 600.0)}
            if odd := red - self._calls.keys():
                print(f"{file} as it is: {', '.join(odd)}", file=sys.__stderr__)
            self._sound[file] = self._calls.keys() - red
        concerned = self._choose(self._places.concerned(mutant))
        chosen = [test for test in concerned if test in self._sound[file]]
        limit_s = _GRACE_S + 10 * sum(self._took_s[test] for test in chosen)
        said = self._forked(lambda: self._try(mutant, chosen, True), limit_s)
        Path(file).write_text(source)
        return {
            "mutant": str(mutant),
            "tests": len(chosen),
            "red": next((row["red"] for row in said), ""),
        }

    def _choose(self, places: set[tuple[str, int]]) -> list[str]:
        """The tests that call one of these, those that call little else first; of tests that call
        all checks, as those of whole nodes, a few: a mutant that survives is tried on each."""
        there = [test for test, calls in self._calls.items() if calls & places]
        broad = [test for test in there if len(self._calls[test]) > _BROAD]
        some = broad[:: len(broad) // _BROAD_TESTS + 1]
        narrow = [test for test in there if len(self._calls[test]) <= _BROAD]
        return sorted([*narrow, *some], key=lambda test: len(self._calls[test]))

    def _record(self, items: Sequence[pytest.Item]) -> Any:
        """Run all tests; says of each that passes what it called."""
        note = self._scratch / "called"
        seen: set[tuple[str, int]] = set()
        under = f"{Path.cwd()}/"

        def trace(frame: Any, _event: str, _arg: object) -> None:
            code = frame.f_code
            key = (code.co_filename, code.co_firstlineno)
            if key in seen:
                return
            seen.add(key)
            if code.co_filename.startswith(under):
                with open(note, "a") as into:  # a check may close all files, and be a fork of this
                    into.write(f"{code.co_filename.removeprefix(under)}\t{code.co_firstlineno}\n")

        for item, following in zip(items, [*items[1:], None], strict=True):
            seen.clear()
            note.write_text("")
            began = time.monotonic()
            sys.settrace(trace)
            threading.settrace(trace)
            passed = _passes(item, following)
            sys.settrace(None)
            took = time.monotonic() - began
            if passed:
                called = {tuple(line.split("\t")) for line in note.read_text().splitlines()}
                places = {self._places.start(file, int(line)) for file, line in called}
                calls = [place for place in places if place is not None]
                yield {"test": item.nodeid, "took_s": took, "calls": calls}

    def _try(self, mutant: Mutant, tests: Sequence[str], stop: bool) -> Any:
        """Run tests against a mutant; names those that fail."""
        try:
            become(mutant)
        except Exception as error:
            yield {"red": f"it does not load: {error!r}"}
            return
        items = [self._items[test] for test in tests]
        for item, following in zip(items, [*items[1:], None], strict=True):
            if not _passes(item, following):
                yield {"red": item.nodeid}
                if stop:
                    return

    def _forked(self, do: Callable[[], Any], limit_s: float) -> list[Mapping[str, Any]]:
        """What it yields in a process of its own; where that takes too long, a row that says so."""
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.close(out)
            with open(into, "w", buffering=1) as pipe:
                try:
                    for row in do():
                        print(json.dumps(row), file=pipe)
                except BaseException as error:
                    traceback.print_exc()
                    print(json.dumps({"red": f"pytest itself: {error!r}"}), file=pipe)
                finally:
                    pipe.flush()
                    os._exit(0)
        self._running = pid
        os.close(into)
        text, late = _read(out, time.monotonic() + limit_s)
        self._kill()
        os.waitpid(pid, 0)
        for left in self._scratch.glob("base/*"):
            shutil.rmtree(left, ignore_errors=True)
        if late:
            share_a_tree()
        rows = [json.loads(line) for line in text.splitlines()]
        return [*rows, {"red": "the time limit"}] if late and not rows else rows

    def _kill(self) -> None:
        if self._running:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._running, signal.SIGKILL)
        self._running = 0

    def _end(self, *_: object) -> None:
        """Told to: nothing that a trial started stays."""
        self._kill()
        os._exit(1)


def _read(fd: int, until: float) -> tuple[str, bool]:
    found = b""
    while True:
        ready, _, _ = select.select([fd], [], [], max(0.0, until - time.monotonic()))
        data = os.read(fd, 1 << 16) if ready else b""
        found += data
        if not data:
            os.close(fd)
            return found.decode(), not ready


def _passes(item: pytest.Item, following: pytest.Item | None) -> bool:
    reports = runtestprotocol(item, log=False, nextitem=following)
    return not any(report.failed for report in reports)
