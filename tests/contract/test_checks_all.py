"""What holds for every check, whoever wrote it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import sick
from checks import Case, looks

from healthchecks.frame.check import Status
from healthchecks.frame.registry import registered
from healthchecks.frame.symptoms import SYMPTOMS, meant

_HERE = Path(__file__).parent
_WANTED = {
    "a healthy node": {Status.OK},
    "a bad node": {Status.WARN, Status.FAIL},
    "a source that can't be read": {Status.UNKNOWN},
    "a node to which it does not apply": {Status.SKIP},
}
_HEAVY = {
    "asyncio",
    "click",
    "jinja2",
    "msgspec",
    "multiprocessing",
    "numpy",
    "paramiko",
    "psutil",
    "pynvml",
    "rich",
    "sqlite3",
    "ssl",
    "subprocess",
    "torch",
    "yaml",
    "zmq",
}


@cache
def all_cases() -> list[Case]:
    modules = sorted(p.stem for p in _HERE.glob("test_checks_*.py") if p.stem != "test_checks_all")
    return [case for name in modules for case in importlib.import_module(name).CASES]


@pytest.mark.parametrize("name", registered())
@pytest.mark.parametrize("what", _WANTED)
def test_every_check_has_a_case(name: str, what: str) -> None:
    given = {case.status for case in all_cases() if case.check == name}
    assert given & _WANTED[what], (
        f'{name} has no case of {what}; where there is none: Case(…, none="why")'
    )


def test_every_case_is_of_a_check_and_says_something_of_its_own() -> None:
    names = [str(case) for case in [*all_cases(), *sick.CASES]]
    assert {case.check for case in all_cases()} <= set(registered())
    assert len(names) == len(set(names)), [n for n in names if names.count(n) > 1]


@pytest.mark.parametrize("name", registered())
def test_nothing_to_see_is_never_ok(name: str, tmp_path: Path) -> None:
    result = looks(Case(check=name, name="empty", status=Status.SKIP, empty=True), tmp_path)[-1]
    assert result.status is not Status.OK, result.seen
    assert "the check itself failed" not in result.seen, result.seen
    assert result.seen


@pytest.mark.parametrize("name", registered())
def test_every_check_is_documented(name: str) -> None:
    check = registered()[name]
    assert check.summary.endswith("."), "the docstring's first line is a sentence"
    for option in check.options().values():
        assert option.about.doc, f"{name}.{option.name} says nothing about itself"
    assert check.tags
    assert check.deadline_s <= 60 or check.tags == {"deep"}


def test_every_check_has_a_symptom_and_every_symptom_checks() -> None:
    checks = registered().items()
    ours = {name for name, check in checks if check.run.__module__.startswith("healthchecks.")}
    words = {word for row in SYMPTOMS.values() for word in row}
    assert ours - set(meant(words, ours)) == set()
    assert [word for word in words if not meant([word], ours)] == []


def test_no_module_of_checks_imports_anything_heavy() -> None:
    code = (
        "import json, sys; from healthchecks.frame.registry import registered; registered(); "
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(json.loads(done.stdout)) & _HEAVY
