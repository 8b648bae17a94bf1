"""Runs as `python -I -m supervisor.doctor.look_at_files`, its question on stdin.

Storage may hang, so a child looks: it writes a line for each path as soon as it knows, and what it
is about to look at is known to be what hangs.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_SOURCE = 1_000_000  # bytes of a script that is read for its options
MAX_FILES = 3000  # of a configuration's sources
MAX_LOOK, MAX_DEPTH = 20_000, 6  # entries of folders; folders in folders
NOT_CODE = ("__pycache__", "site_packages", "node_modules")


def path_facts(path: str) -> dict[str, Any]:
    """What is there, and what this user may do with it; of what is missing, the nearest folder."""
    facts: dict[str, Any] = {"kind": "missing", "read": False, "write": False, "enter": False}
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        facts["why"] = error.strerror
    else:
        kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "dir"}
        facts["kind"] = kinds.get(stat.S_IFMT(mode), "other")
        facts["read"], facts["write"] = os.access(path, os.R_OK), os.access(path, os.W_OK)
        facts["enter"] = os.access(path, os.X_OK)
        if facts["kind"] == "dir" and os.path.isfile(f"{path}/__main__.py"):  # noqa: PTH113
            facts["main"] = True  # python runs it
        return facts
    # Path.is_dir raises where a folder above may not be entered.
    near = next((p for p in Path(path).parents if os.path.isdir(p)), Path("/"))  # noqa: PTH112
    facts["near"], facts["near_open"] = str(near), os.access(near, os.W_OK | os.X_OK)
    return facts


def script_options(script: str) -> list[str] | None:
    """The options that a script's own argparse takes; None where that can't be told by its text.

    Only a script that builds one plain parser, gives it to nobody, and refuses what it does not
    know can be told.
    """
    if Path(script).stat().st_size > MAX_SOURCE:
        return None
    tree = ast.parse(Path(script).read_bytes())
    options: list[str] = []
    parsers: set[str] = set()
    strict = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _called(node.value) == "ArgumentParser":
            parsers |= {t.id for t in node.targets if isinstance(t, ast.Name)}
            assert isinstance(node.value, ast.Call)
            if {k.arg for k in node.value.keywords} & {"parents", "prefix_chars", None}:
                return None
    if len(parsers) != 1:
        return None
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _called(node)
        given = [*node.args, *(k.value for k in node.keywords)]
        if any(isinstance(arg, ast.Name) and arg.id in parsers for arg in given):
            return None  # somebody else adds to it
        if name in ("add_subparsers", "parse_known_args", "parse_intermixed_args"):
            return None
        strict = strict or name == "parse_args"
        if name == "add_argument":
            if not all(isinstance(a, ast.Constant) and isinstance(a.value, str) for a in node.args):
                return None
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
            options += [str(n) for n in names if str(n).startswith("-")]
            if any(_named(k.value) == "BooleanOptionalAction" for k in node.keywords):
                options += [f"--no-{str(n)[2:]}" for n in names if str(n).startswith("--")]
    return options if strict else None


def _called(node: ast.expr) -> str:
    return _named(node.func) if isinstance(node, ast.Call) else ""


def _named(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def fields_in(folders: list[str]) -> list[str]:
    """Names of annotated fields in the Python files below folders: what a configuration may have.

    Empty where there is too much to read.
    """
    names: set[str] = set()
    for number, path in enumerate(_sources(folders)):
        if number >= MAX_FILES:
            return []
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        names.update(re.findall(r"^[ \t]+(\w+)[ \t]*:(?!\s*$)", text, flags=re.M))
    return sorted(names)


def _sources(folders: list[str]) -> Iterator[Path]:
    looked = 0
    for folder in folders:
        for at, inner, files in os.walk(folder):
            looked += len(inner) + len(files)
            deep = len(Path(at).relative_to(folder).parts) >= MAX_DEPTH
            if looked > MAX_LOOK or deep:
                inner[:] = []
            inner[:] = [n for n in inner if n.isidentifier() and n not in NOT_CODE]
            yield from (Path(at) / name for name in files if name.endswith(".py"))


def answers(question: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Pairs of what was asked and what was found; a first one of each says that it is looked at."""
    for path in question["paths"]:
        yield path, None
        yield path, path_facts(path)
    if script := question.get("script"):
        yield "options", None
        with contextlib.suppress(OSError, SyntaxError, ValueError, RecursionError):
            yield "options", script_options(script)
    if folders := question.get("folders"):
        yield "fields", None
        yield "fields", fields_in(folders)


def main() -> None:
    for key, value in answers(json.loads(sys.stdin.read())):
        sys.stdout.write(json.dumps([key, value]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
