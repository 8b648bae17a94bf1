"""The small ways in which a check can be wrong: thresholds, needles and statuses, by its syntax.

Words for people (what was seen, what to do, where a number is from) are left alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_OTHER: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_MILDER = {"FAIL": "WARN", "WARN": "OK", "UNKNOWN": "OK", "OK": "WARN"}
# Calls and arguments that hold words for people.
_TOLD = {"warn", "fail", "unknown", "not_yet", "add", "fact", "metric", "append", "announce"}
_TOLD |= {"Skip", "Unknown", "NotYet", "Result", "result", "check", "About", "ValueError"}
# keys that are written and read may be any
_TOLD |= {f"memory.{name}" for name in ("get", "put", "recent", "counter_delta")}
_WORDY = re.compile(r"_?(UNTESTED|\w*FIX|\w*_RESTART|\w*WHY)\w*")  # constants that hold such words
_WORDS = {"doc", "fix", "expected", "source", "example", "unit", "untested", "timeout_fix", "what"}
_WORDS |= {"fine", "seen", "advice", "text", "reference", "meaning", "detail", "why", "__doc__"}
_NEEDLE = re.compile(r"(?<![\\<(?A-Za-z_])[A-Za-z][A-Za-z_]+|(?<![\w\\])\w(?!\w)")
_PIECES = 12  # alternatives of one expression that are tried


@dataclass(frozen=True, slots=True)
class Mutant:
    """One file with one thing changed."""

    file: str  # below the root, as healthchecks/checks/nic.py
    line: int
    what: str  # as `>= → >`
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """All of one file, in the order of its text. Raises SyntaxError."""
    tree = ast.parse(source)
    for node, what, do, undo in list(_places(tree, told=False)):
        do()
        changed = ast.unparse(tree)
        undo()
        yield Mutant(file, node.lineno, what, changed)


_Place = tuple[ast.expr, str, Callable[[], None], Callable[[], None]]


def _set(node: ast.AST, field: str, new: object) -> tuple[Callable[[], None], Callable[[], None]]:
    old = getattr(node, field)
    return (lambda: setattr(node, field, new)), (lambda: setattr(node, field, old))


def _swap(node: ast.expr, new: ast.expr) -> tuple[Callable[[], None], Callable[[], None]]:
    """Make one expression another, in its place."""
    kind, fields = type(node), dict(vars(node))

    def do() -> None:
        node.__class__ = type(new)
        vars(node).update(vars(new))

    def undo() -> None:
        node.__class__ = kind
        vars(node).clear()
        vars(node).update(fields)

    return do, undo


def _places(node: ast.AST, told: bool) -> Iterator[_Place]:
    if isinstance(node, ast.Compare):
        for index, op in enumerate(node.ops):
            if type(op) in _OTHER:
                new = _OTHER[type(op)]()
                ops = [*node.ops[:index], new, *node.ops[index + 1 :]]
                what = f"{_sign(op)} → {_sign(new)} in {ast.unparse(node)}"
                yield node, what, *_set(node, "ops", ops)
    elif isinstance(node, ast.Constant):
        yield from _constant(node, told)
    elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("Status", "Gap"):
        if node.attr in _MILDER:
            milder = _MILDER[node.attr]
            yield node, f"{node.attr} → {milder}", *_set(node, "attr", milder)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr == "fail":
            yield node, f"fail → warn: {_short(node)}", *_set(node.func, "attr", "warn")
        elif node.func.attr in ("warn", "unknown", "not_yet", "unmeasured"):
            yield node, f"not said: {_short(node)}", *_swap(node, ast.Constant(None))
    for child, hidden in _children(node):
        yield from _places(child, told or hidden)


def _children(node: ast.AST) -> Iterator[tuple[ast.AST, bool]]:
    """What is below a node, and whether it holds words for people."""
    docstring = None
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
        docstring = node.body[0]
    for child in ast.iter_child_nodes(node):
        if child is docstring:
            continue
        if isinstance(node, ast.arg | ast.AnnAssign) and child is node.annotation:
            continue
        if isinstance(child, ast.ImportFrom | ast.Import):
            continue
        if isinstance(node, ast.FunctionDef) and child in node.decorator_list:
            continue  # what a check declares is in docs/checks/, which a test holds to it
        hidden = isinstance(child, ast.keyword) and (child.arg or "") in _WORDS
        if isinstance(node, ast.Call) and child in node.args:
            names = ast.unparse(node.func).split(".")
            hidden = bool({names[-1], ".".join(names[-2:])} & _TOLD)
        if isinstance(node, ast.Assign) and child is node.value:
            hidden = bool(_WORDY.fullmatch(ast.unparse(node.targets[0])))
        if isinstance(node, ast.Return | ast.JoinedStr | ast.FormattedValue):
            hidden = hidden or isinstance(child, ast.Constant | ast.JoinedStr)
        if isinstance(node, ast.keyword) and node.arg in ("regex", "substring", "cleared_regex"):
            hidden = False
        yield child, hidden


def _constant(node: ast.Constant, told: bool) -> Iterator[_Place]:
    old = node.value
    if isinstance(old, bool) or old is None:
        return
    if isinstance(old, int | float):
        new = old + 1 if isinstance(old, int) or old == 0 else old * 1.1
        yield node, f"{old} → {new:g}", *_set(node, "value", new)
    elif isinstance(old, str) and not told:
        for match in _pieces(old):
            new = old[: match.end()] + "~" + old[match.end() :]
            yield node, f"{old!r} → {new!r}", *_set(node, "value", new)


def _pieces(text: str) -> list[re.Match[str]]:
    """Where a needle is bent: once, or once in each alternative of an expression."""
    found = []
    start = 0
    for part in text.split("|"):
        if match := _NEEDLE.search(text, start, start + len(part)):
            found.append(match)
        start += len(part) + 1
    return found[:_PIECES]


def _sign(op: ast.cmpop) -> str:
    return ast.unparse(ast.Compare(ast.Name("a"), [op], [ast.Name("b")]))[2:-2]


def _short(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 70 else f"{text[:67]}…"
