"""A running pytest made to use another text of one module, and what of the code a line concerns."""

from __future__ import annotations

import ast
import ctypes
import importlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.mutants.mutations import Mutant

PACKAGE = "healthchecks"


def become(mutant: Mutant) -> None:
    """Let its module, and all that import it, be as it says: on disk and in this process."""
    place = Path(mutant.file)
    place.write_text(mutant.source)
    os.utime(place, (os.getpid(), os.getpid()))  # else a program may take an earlier code
    sys.path_importer_cache.clear()
    register = getattr(sys.modules.get(f"{PACKAGE}.frame.check"), "REGISTERED", {})
    order = list(register)
    for one in _dependents(_module(mutant.file)):
        module = sys.modules[one]
        for check in [c for c, it in register.items() if it.run.__module__ == one]:
            del register[check]
        old = dict(vars(module))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = compile(Path(str(module.__file__)).read_text(), str(module.__file__), "exec")
        exec(code, vars(module))
        _rebind(old, vars(module))
    again = dict(register)
    register.clear()
    register.update({c: again[c] for c in sorted(again, key=_place_in(order))})


def _place_in(order: list[str]) -> Any:
    return lambda name: order.index(name) if name in order else len(order)


def _rebind(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Whoever took a name from a module's old text has the new one."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        for name in names.keys() & old.keys():
            if not name.startswith("__") and names[name] is old[name] and name in new:
                names[name] = new[name]


@cache
def _dependents(name: str) -> list[str]:
    """A loaded module and those that import it, in the order in which they can be loaded again."""
    loaded = {n: m for n, m in sys.modules.items() if n.startswith(f"{PACKAGE}.")}
    wants = {n: _imports(Path(str(m.__file__))) for n, m in loaded.items() if m.__file__}
    found = [name] if name in loaded else []
    grew = True
    while grew:
        grew = False
        for one, wanted in wants.items():
            if one not in found and wanted & set(found):
                found.append(one)
                grew = True
    done: list[str] = []

    def visit(one: str) -> None:
        for before in found:
            if before in wants[one] and before not in done and before != one:
                visit(before)
        if one not in done:
            done.append(one)

    for one in found:
        visit(one)
    return done


@cache
def _imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return found


def ready(file: str) -> None:
    """Find out, before forks do each, what has to be loaded again with a module."""
    for costly in ("pynvml", "msgspec"):
        importlib.import_module(costly)
    _dependents(_module(file))


def _module(file: str) -> str:
    return file.removesuffix(".py").replace("/", ".")


class Places:
    """The statements of modules: which one a call was of, and which of them a line concerns."""

    def __init__(self) -> None:
        self.starts: dict[tuple[str, int], ast.stmt] = {}
        for file in sorted(Path(PACKAGE).rglob("*.py")):
            for node in ast.parse(file.read_text()).body:
                self.starts[str(file), _start(node)] = node

    def start(self, file: str, line: int) -> tuple[str, int] | None:
        """Where the module's statement begins that holds a line."""
        for (its_file, start), node in self.starts.items():
            if its_file == file and start <= line <= (node.end_lineno or start):
                return file, start
        return None

    def concerned(self, mutant: Mutant) -> set[tuple[str, int]]:
        """Statements that behave otherwise: the function itself, or all that name what changed."""
        begun = self.start(mutant.file, mutant.line)
        if begun is None:
            return set()
        found, todo = {begun}, [begun]
        while todo:
            node = self.starts[todo.pop()]
            if isinstance(node, ast.FunctionDef):
                continue
            names = set(_defined(node))
            for place, other in self.starts.items():
                if place not in found and names & _named(other):
                    found.add(place)
                    todo.append(place)
        return found


def _start(node: ast.stmt) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        yield node.name
    for target in [*getattr(node, "targets", []), getattr(node, "target", None)]:
        for part in ast.walk(target) if target is not None else ():
            if isinstance(part, ast.Name):
                yield part.id


_names: dict[ast.stmt, set[str]] = {}


def _named(node: ast.stmt) -> set[str]:
    if node not in _names:
        parts = list(ast.walk(node))
        _names[node] = {p.id for p in parts if isinstance(p, ast.Name)}
        _names[node] |= {p.attr for p in parts if isinstance(p, ast.Attribute)}
    return _names[node]


def stand_in_for_workers(scratch: Path) -> None:
    """Let tests that ask a Worker be answered by a fork of this process, which needs no start."""
    try:
        from tests.hardware import nvml
        from tests.hardware.nvml.worker import answer
    except ImportError:
        return
    library = nvml.build(scratch / "nvml")

    class Forked:
        def __init__(self, _library: Path, module: Path, _log: Path) -> None:
            self._module = importlib.import_module(module.stem)

        def ask(self, name: str, tmp_path: Path) -> dict[str, Any]:
            from tests.hardware.tree import borrowed

            cases = {str(case): case for case in self._module.CASES}
            run = getattr(self._module, "run", None) or importlib.import_module("checks").run
            note = tmp_path / "said"
            pid = os.fork()
            if pid == 0:
                try:
                    sys.modules["healthchecks.sources.nvml"]._sessions.clear()  # without a library
                    ctypes.CDLL(str(library / "libnvidia-ml.so.1"), mode=ctypes.RTLD_GLOBAL)
                    with borrowed() as tree:
                        os.environ["SUPERV_FAKE_NVML"] = os.fspath(tree.path(nvml.SCRIPT))
                    note.write_text(json.dumps(answer(run, cases[name], tmp_path)))
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)
            return dict(json.loads(note.read_text()))

        def close(self) -> None:
            pass

    old = {"Worker": nvml.Worker, "build": nvml.build}
    _rebind(old, {"Worker": Forked, "build": lambda _folder: library})


def share_a_tree() -> None:
    """Make the node that tests borrow, once for all forks; after one was killed, a new one."""
    if (trees := sys.modules.get("tests.hardware.tree")) is not None:
        trees._shared.cache_clear()
        trees._shared()
