"""Signatures: every one is held to its own examples, and a broken one says what is wrong."""

from __future__ import annotations

import re
from importlib import import_module
from pkgutil import walk_packages

import pytest

from healthchecks import checks
from healthchecks.frame.check import Status
from healthchecks.sources.kernel_patterns import KernelLogPattern
from supervisor import signatures
from supervisor.signatures import Blames, CauseClass, LogKind, Role, SignatureError, load, parse

ALL = load().all
LOG_PATTERNS = [
    pattern
    for module in walk_packages(checks.__path__, "healthchecks.checks.")
    for value in vars(import_module(module.name)).values()
    for pattern in (value if isinstance(value, tuple) else (value,))
    if isinstance(pattern, KernelLogPattern) and pattern.status is Status.FAIL
]
CAUSES = """
unknown: {class: unknown, short: s, do: d}
oom: {class: user, short: s, do: d}
"""
GOOD = """
- {id: a, cause: oom, role: cause, blames: nobody, text: out of memory, source: s,
   match: [out of memory], differs: [fine]}
"""


@pytest.mark.parametrize("pattern", LOG_PATTERNS, ids=[one.name for one in LOG_PATTERNS])
def test_what_fails_a_node_in_a_kernel_s_log_is_known_when_a_job_ended(
    pattern: KernelLogPattern,
) -> None:
    known = {w.example: load().find(w.example, LogKind.KERNEL)[0] for w in pattern.wordings}
    assert [line for line, found in known.items() if found is None] == []


def test_the_checks_have_patterns_that_fail_a_node() -> None:
    assert len(LOG_PATTERNS) >= 15


@pytest.mark.parametrize("one", ALL, ids=[one.id for one in ALL])
def test_a_signature_finds_its_examples_and_leaves_the_others_alone(
    one: signatures.Signature,
) -> None:
    for line in one.match:
        found, _ = load().find(line, one.log)
        assert found is one, f"{line!r} is found by {found.id if found else None}"
    for line in one.differs:
        assert one.find(line) is None, line


@pytest.mark.parametrize("one", ALL, ids=[one.id for one in ALL])
def test_one_line_is_one_line_and_no_pattern_runs_away(one: signatures.Signature) -> None:
    assert "\n" not in "".join((*one.match, *one.differs))
    # Whatever a rank may print: 4 kB of what patterns repeat over.
    for text in ("a" * 4096, "Error " * 700, "[rank0]:" * 500, "- " * 2048, "loss " * 800):
        one.find(text)


def test_what_is_said_of_cascades_names_nobody() -> None:
    assert not [one.id for one in ALL if one.role is Role.CASCADE and one.blames != Blames.NOBODY]
    assert all(re.search(r"[a-z]", one.source) for one in ALL)


def test_a_program_of_a_person_blames_no_hardware() -> None:
    hardware = (Blames.GPU, Blames.LINK)
    for one in ALL:
        if one.blames in hardware:
            assert one.cause.kind is CauseClass.INFRASTRUCTURE, one.id


def test_kernel_lines_are_read_from_their_beginning() -> None:
    one = next(one for one in ALL if one.log is LogKind.KERNEL)
    assert one.find(one.match[0]) and not one.find("a program said: " + one.match[0])


def test_a_good_file_is_read() -> None:
    (one,) = parse({"causes.yaml": CAUSES, "x.yaml": GOOD}).all
    assert (one.id, one.cause.name, one.needles) == ("a", "oom", ("out of memory",))


BROKEN = {
    "no such key; valid: ": GOOD.replace("role:", "roll:"),
    "lacks source": GOOD.replace("source: s,", ""),
    "role: 'root' is none of cause, symptom, cascade": GOOD.replace("role: cause", "role: root"),
    "cause 'fire' is not in causes.yaml": GOOD.replace("oom", "fire"),
    "no text: put it in quotes": GOOD.replace("text: out of", "text: [2]"),
    "x.yaml has that id, too": GOOD + GOOD,
    "give text or pattern": GOOD.replace("text:", "pattern: a, text:"),
    "each has 3 characters": GOOD.replace("text: out of memory", "text: '12'"),
    "x.yaml: a list of signatures is wanted": "a: b",
    "pattern: missing )": GOOD.replace("text: out of memory", "needles: out, pattern: '(a'"),
    "x.yaml: while": "- [",
}


@pytest.mark.parametrize("said", BROKEN)
def test_a_broken_file_says_where_and_what(said: str) -> None:
    text = BROKEN[said].replace("text: [2] memory", "text: [2]")
    with pytest.raises(SignatureError, match=re.escape(said)) as error:
        parse({"causes.yaml": CAUSES, "x.yaml": text})
    assert "x.yaml" in str(error.value) and "\n" not in str(error.value)
