"""The frame of health checks: what is registered and chosen, settings, reports, the programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest

from healthchecks.frame import catalogue, report
from healthchecks.frame.check import (
    REGISTERED,
    Findings,
    Metric,
    Result,
    Status,
    check,
    worst,
)
from healthchecks.frame.context import Ctx
from healthchecks.frame.registry import registered, select, settings_for
from healthchecks.frame.report import Finding, Report
from healthchecks.frame.settings import merged
from supervisor.core.errors import UserError
from supervisor.core.setting import About


@pytest.fixture
def fresh() -> Iterator[None]:
    """What a test registers goes with it."""
    registered()
    before = dict(REGISTERED)
    yield
    REGISTERED.clear()
    REGISTERED.update(before)


def options(
    ctx: Ctx,
    *,
    count: Annotated[int, About(doc="How many.", ge=1, le=16)] = 8,
    share: Annotated[float, About(doc="A share.", unit="%", le=100)] = 5.0,
    kind: Annotated[str, About(doc="Which.", choices=("ib", "roce"))] = "ib",
    name: Annotated[str, About(doc="A name.", pattern="[a-z]+[0-9]*")] = "a",
    strict: Annotated[bool, About(doc="Whether.")] = False,
    path: Annotated[Path, About(doc="Where.")] = Path("/a"),
    numbers: Annotated[tuple[int, ...], About(doc="Some.", ge=0)] = (),
) -> Result:
    """It has options of all types."""
    return Result(status=Status.OK, seen="fine")


# -- what is registered


def test_a_name_is_taken_once_and_by_whom_is_said(fresh: None):
    check("new.one", tags={"deep"})(options)
    with pytest.raises(ValueError, match=r"new\.one is already a check, of .*test_health_frame"):
        check("new.one", tags={"deep"})(options)


def test_tags_are_known(fresh: None):
    with pytest.raises(ValueError, match=r"new: no tag prelight; valid: preflight, prolog"):
        check("new", tags={"prelight"})


def test_a_check_says_what_it_is(fresh: None):
    def silent(ctx: Ctx) -> Result:
        return Result(status=Status.OK, seen="")

    with pytest.raises(ValueError, match="new: silent needs a docstring"):
        check("new", tags={"deep"})(silent)


def test_choosing_by_name_group_and_tag(fresh: None):
    for name, tag in (("new.a", "deep"), ("new.b", "prolog"), ("newer", "prolog")):
        check(name, tags={tag})(options)
    assert [c.name for c in select(["new.b", "new.a"])] == ["new.a", "new.b"]  # as registered
    assert [c.name for c in select(["new"])] == ["new.a", "new.b"]
    assert [c.name for c in select(["new"], ["prolog"])] == ["new.b"]
    assert {"new.b", "newer"} <= {c.name for c in select([], ["prolog"])}
    assert not {"new.a"} & {c.name for c in select([], ["prolog"])}


@pytest.mark.parametrize(
    ("names", "tags", "text"),
    [
        (["new.c"], [], "no check 'new.c'; did you mean new.a; superv check --list shows all"),
        ([], ["prologue"], "no tag 'prologue'; valid: preflight, prolog, running, deep"),
        (["new"], ["running"], "new: not of running, but of deep"),
        ([], [], "nothing to run: name checks or tags"),
    ],
)
def test_a_choice_of_nothing_is_a_mistake(fresh: None, names, tags, text: str):
    check("new.a", tags={"deep"})(options)
    with pytest.raises(UserError) as caught:
        select(names, tags)
    assert str(caught.value) == text


# -- settings


def test_settings_of_all_types(fresh: None):
    check("new", tags={"deep"})(options)
    given = {
        "count": "4",
        "share": "2.5",
        "kind": "roce",
        "name": "mlx5",
        "strict": "true",
        "path": "/b",
        "numbers": ["1", 2],
    }
    assert settings_for(REGISTERED["new"], given) == {
        "count": 4,
        "share": 2.5,
        "kind": "roce",
        "name": "mlx5",
        "strict": True,
        "path": Path("/b"),
        "numbers": (1, 2),
    }
    assert settings_for(REGISTERED["new"], {}) == {}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"cont": 1}, "new: no key 'cont'; valid: count, share, kind, name, strict, path, numbers"),
        ({"count": "many"}, "new: count: expected a whole number from 1 to 16, got 'many'"),
        ({"count": 0}, "new: count: expected a whole number from 1 to 16, got 0"),
        ({"count": 17}, "new: count: expected a whole number from 1 to 16, got 17"),
        ({"share": "nan"}, "new: share: "),
        ({"share": 101}, "new: share: expected a number"),
        ({"kind": "tcp"}, "new: kind: expected one of ib, roce, got 'tcp'"),
        ({"name": "A"}, "new: name: expected "),
        ({"path": 3}, "new: path: "),
        ({"path": ""}, "new: path: "),
        ({"numbers": [1, -1]}, "new: numbers: expected "),
        ({"numbers": 1}, "new: numbers: expected a list of whole numbers ≥ 0, got 1"),
    ],
)
def test_settings_that_do_not_fit(fresh: None, given: dict[str, Any], text: str):
    check("new", tags={"deep"})(options)
    with pytest.raises(UserError) as caught:
        settings_for(REGISTERED["new"], given)
    assert str(caught.value).startswith(text)


def test_the_site_then_the_command_line(fresh: None, tmp_path: Path):
    check("new.a", tags={"deep"})(options)
    site = tmp_path / "site.yaml"
    site.write_text("checks: {new.a: {count: 3, kind: roce}}\n")
    env = {"SUPERV_SITE": str(site), "HOME": str(tmp_path)}
    found = merged(env, ["new.a.count=5", "new.a.numbers=1,2", "new.a.path=/x=y"])
    assert found == {"new.a": {"count": "5", "kind": "roce", "numbers": ["1", "2"], "path": "/x=y"}}
    assert settings_for(REGISTERED["new.a"], found["new.a"])["numbers"] == (1, 2)


@pytest.mark.parametrize(
    ("site", "sets", "text"),
    [
        ("{new.b: {count: 3}}", [], "no check 'new.b'"),
        ("{new: {count: 3}}", [], "site.yaml:1: checks: new is a group; name one check"),
        ("{}", ["new.a"], "--set new.a: expected CHECK.KEY=VALUE"),
        ("{}", ["new.b.count=1"], "no check 'new.b'"),
        ("{}", ["new.count=1"], "--set new.count=1: new is a group; name one check"),
        ("{}", ["new.a.numbers=[1"], "--set new.a.numbers=[1: not JSON"),
    ],
)
def test_settings_of_no_check(fresh: None, tmp_path: Path, site: str, sets, text: str):
    check("new.a", tags={"deep"})(options)
    (tmp_path / "site.yaml").write_text(f"checks: {site}\n")
    env = {"SUPERV_SITE": str(tmp_path / "site.yaml"), "HOME": str(tmp_path)}
    with pytest.raises(UserError) as caught:
        merged(env, sets)
    assert text in str(caught.value)


def test_the_catalogue_tells_all_of_a_check(fresh: None):
    check("new", tags={"deep"}, deadline_s=3)(options)
    (row,) = catalogue.document([REGISTERED["new"]])["checks"]
    assert row["summary"] == "It has options of all types."
    assert row["settings"][0] == {
        "key": "count",
        "doc": "How many.",
        "unit": "",
        "valid": "a whole number from 1 to 16",
        "default": 8,
    }
    json.dumps(row)


# -- results and reports


def test_the_worst_comes_first():
    assert worst([]) is Status.SKIP
    assert worst([Status.SKIP, Status.OK]) is Status.OK
    assert worst([Status.OK, Status.WARN]) is Status.WARN
    assert worst([Status.WARN, Status.UNKNOWN]) is Status.UNKNOWN
    assert worst([Status.UNKNOWN, Status.FAIL]) is Status.FAIL


def test_findings_tell_of_the_worst_kind_only():
    found = Findings()
    assert found.result("all well") == Result(status=Status.OK, seen="all well")
    found.warn("hot", expected="cool", fix="wait", device="gpu1")
    found.unknown("no word", expected="a word", fix="ask", device="gpu2")
    assert found.result("-").status is Status.UNKNOWN and found.result("-").devices == ("gpu2",)
    found.fail("lost", expected="there", fix="reboot", device="gpu3", shared="switch")
    found.fail("gone", expected="there", fix="reboot", device="gpu3")
    assert found.result("-") == Result(
        status=Status.FAIL,
        seen="gpu3: lost; gpu3: gone",
        expected="there",
        fix="reboot",
        devices=("gpu3",),
        shared="switch",
    )


def finding(status: Status, name: str = "a.b", **more: Any) -> Finding:
    return Finding(check=name, result=Result(status=status, seen=more.pop("seen", "x"), **more))


def full() -> Report:
    many = finding(
        Status.FAIL,
        seen="worn",
        expected="new",
        fix="replace",
        metrics={"t": Metric(value=1.5, unit="°C")},
        facts={"vbios": "96"},
        devices=("gpu1",),
        shared="switch",
    )
    return Report(
        node="n1",
        at=1.7e9,
        findings=(many, Finding(check="nfs", on="/a b", result=Result(status=Status.OK, seen=""))),
        tags=("preflight",),
        boot_id="b",
        took_s=0.5,
        cpu_s=0.25,
        notes=("late",),
    )


def test_a_report_survives_the_way_over_the_wire():
    text = json.dumps(full().document())
    again = report.parse(text)
    assert again.document() == full().document()
    assert again.status is Status.FAIL and [f.name for f in again.findings] == ["a.b", "nfs[/a b]"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "{}", '{"schema": 1}', '{"schema": 1, "node": "n", "at": "x"}']
    + [f'{{"schema": 1, "node": "n", "at": 1, "results": {r}}}' for r in ("3", "[3]", "[{}]")]
    + ['{"schema": 1, "node": "n", "at": 1, "results": [{"check": "a", "status": "GOOD"}]}'],
)
def test_what_is_no_report_is_a_line_to_a_human(text: str):
    with pytest.raises(UserError, match="not a health report of superv"):
        report.parse(text)


def test_a_report_of_another_version():
    with pytest.raises(UserError, match="schema 2; this superv reads 1: install one version"):
        report.parse(json.dumps(full().document() | {"schema": 2}))


@pytest.mark.parametrize(
    ("statuses", "code", "nagios_code", "word"),
    [
        ([], 0, 0, "OK: no check applies to this node"),
        (["SKIP"], 0, 0, "OK: no check applies to this node"),
        (["OK", "SKIP", "OK"], 0, 0, "OK: 2 checks passed"),
        (["OK", "WARN"], 0, 1, "WARNING: c1 WARN: x"),
        (["WARN", "UNKNOWN"], 3, 3, "UNKNOWN: "),
        (["UNKNOWN", "FAIL"], 1, 2, "CRITICAL: "),
    ],
)
def test_exit_codes(statuses: list[str], code: int, nagios_code: int, word: str):
    rows = [finding(Status(s), f"c{n}") for n, s in enumerate(statuses)]
    one = Report(node="n", at=0.0, findings=rows)
    assert report.exit_code(one) == code
    text, found = report.nagios(one)
    assert found == nagios_code and text.startswith(word)


def test_the_lines_of_a_nagios_plugin():
    metrics = {
        "t": Metric(value=1.5, unit="s"),
        "it's=x": Metric(value=7),
        "heat": Metric(value=85.25, unit="°C"),
        "big": Metric(value=1e20),
        "ber": Metric(value=1.5e-15),
        "used": Metric(value=80.0, unit="%"),
    }
    rows = [
        finding(Status.FAIL, "gpu.a", seen="a | b\nc", metrics=metrics),
        *(finding(Status.WARN, f"w{n}", seen="hot") for n in range(4)),
    ]
    text, code = report.nagios(Report(node="n", at=0.0, findings=rows))
    first, *rest = text.split("\n")
    said, _, perf = first.partition(" | ")
    assert code == 2
    assert said == "CRITICAL: gpu.a FAIL: a / b c; w0 WARN: hot; w1 WARN: hot; and 2 more"
    assert perf == (
        "'gpu.a.t'=1.5s 'gpu.a.its-x'=7 'gpu.a.heat'=85.25 'gpu.a.big'=100000000000000000000 "
        "'gpu.a.ber'=0.0000000000000015 'gpu.a.used'=80%"
    )
    assert rest == ["WARN w2: hot", "WARN w3: hot"]


# -- the programs


THIRD = '''
from typing import Annotated
from healthchecks.frame.check import Findings, Result, Skip, Status, check
from supervisor.core.setting import About

@check("third.good", tags={"preflight"}, resource="third")
def good(ctx, *, most: Annotated[int, About(doc="The most.", ge=1)] = 8):
    """It is good."""
    return Result(status=Status.OK, seen=f"at most {most} below {ctx.root}")

@check("third.bad", tags={"deep"})
def bad(ctx):
    """It is bad."""
    found = Findings()
    found.fail("\\x1b[31mbroken", expected="whole", fix="fix it", device="gpu1")
    return found.result("")

@check("third.odd", tags={"prolog"})
def odd(ctx):
    """It can't tell."""
    ctx.text("no/such/file")
'''


@pytest.fixture
def third(tmp_path: Path) -> dict[str, str]:
    """The environment in which another distribution's checks are installed."""
    info = tmp_path / "third-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[superv.checks]\nthird = third\n")
    (tmp_path / "third.py").write_text(THIRD)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "HOME": str(tmp_path)}


SUPERV = [sys.executable, "-c", "from supervisor.cli import main; main()", "check"]


def superv(env: dict[str, str], *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SUPERV, *args], env=env, capture_output=True, text=True, timeout=60, **more
    )


def test_checks_of_another_distribution(third: dict[str, str], tmp_path: Path):
    done = superv(third, "third", "--root", str(tmp_path), "--set", "third.good.most=3")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "FAIL    third.bad",
        "        gpu1: ·[31mbroken (expected: whole)",
        "        → fix it",
        "UNKNOWN third.odd",
    ]
    assert "/no/such/file: No such file" in done.stdout
    assert "OK      third.good" in lines and f"        at most 3 below {tmp_path}" in lines
    assert ": 1 FAIL, 1 UNKNOWN, 1 OK; took " in lines[-1]


def test_the_document_and_its_exit_code(third: dict[str, str], tmp_path: Path):
    state = tmp_path / "state"
    done = superv(third, "third", "--tags", "prolog", "--json", "--state", str(state))
    one = report.parse(done.stdout)
    assert done.returncode == 3 and [f.check for f in one.findings] == ["third.odd"]
    assert (state / f"{one.node}.json").exists()


def test_as_a_nagios_plugin(third: dict[str, str], tmp_path: Path):
    done = superv(third, "third.bad", "--nagios", "--root", str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == "CRITICAL: third.bad FAIL: gpu1: ·[31mbroken\n"


def test_the_list(third: dict[str, str]):
    done = superv(third, "third.good", "--list")
    assert done.stdout.splitlines() == [
        "third.good           preflight",
        "    It is good.",
        "    --set third.good.most=8",
    ]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["gpu.cont"], "superv: no check 'gpu.cont'; did you mean gpu.count; superv check --list"),
        (["gpu.count,eccc"], "superv: no check 'eccc'; did you mean ecc"),
        (["--check", "nosuch"], "superv: no check 'nosuch'; there are accel cpu "),
        (["--check"], "superv: --check needs a value: CHECK (superv check --list shows them)"),
        (["--set", "clock.warn_ms=abc"], "superv: --set clock.warn_ms=abc: expected a number ≥ 0"),
        (["--set", "clock.warn=3"], "superv: --set clock.warn=3: no key 'warn'; valid: warn_ms, "),
        (
            ["--set", "nfs.gate.slow_ms=-1"],
            "superv: --set nfs.gate.slow_ms=-1: expected a number ≥ 0",
        ),
        (["--set", "xid.enabled=maybe"], "superv: --set xid.enabled=maybe: expected true or false"),
        (
            ["third.good", "--set", "third.good.most=0"],
            "superv: --set third.good.most=0: expected a whole",
        ),
    ],
)
def test_mistakes_end_with_2_and_a_line(third: dict[str, str], args: list[str], text: str):
    done = superv(third, *args)
    assert done.returncode == 2 and done.stderr.startswith(text)
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_a_distribution_that_is_broken_is_named(third: dict[str, str], tmp_path: Path):
    (tmp_path / "third.py").write_text("import no_such_module\n")
    done = superv(third, "fs.local")
    assert done.returncode == 2
    assert done.stderr == (
        "superv: the checks of third (third) can't be loaded: No module named 'no_such_module'; "
        "fix or uninstall it\n"
    )


def carried(env: dict[str, str], order: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "healthchecks"],
        env=env,
        input=order,
        capture_output=True,
        text=True,
        timeout=60,
        **more,
    )


def test_an_order_of_another_node(third: dict[str, str], tmp_path: Path):
    order = {
        "names": ["third.good", "third.odd"],
        "settings": {"third.good": {"most": 2}},
        "node": "n42",
        "root": str(tmp_path),
        "folder": str(tmp_path / "state"),
        "deadline_s": 30,
    }
    done = carried(third, json.dumps(order))
    one = report.parse(done.stdout)
    assert done.returncode == 0 and one.node == "n42"
    assert [f.result.status for f in one.findings] == [Status.OK, Status.UNKNOWN]
    assert one.findings[0].result.seen.startswith("at most 2")
    assert (tmp_path / "state" / "n42.json").exists()


@pytest.mark.parametrize(
    ("order", "text"),
    [
        ("{", "superv: not an order of checks: "),
        ("[]", "superv: not an order of checks: "),
        ("{}", "superv: nothing to run: name checks or tags"),
        ('{"names": 3}', "superv: not an order of checks: "),
        ('{"names": ["third.good"], "deadline_s": "soon"}', "superv: not an order of checks: "),
        ('{"names": ["third.good"], "settings": 3}', "superv: not an order"),
        (
            '{"names": ["third.good"], "settings": {"third.good": 3}}',
            "superv: third.good: expected a",
        ),
    ],
)
def test_a_garbled_order(third: dict[str, str], order: str, text: str):
    done = carried(third, order)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(text) and done.stderr.count("\n") == 1


def test_with_every_descriptor_closed(third: dict[str, str], tmp_path: Path):
    """As some schedulers start a program: its pipes then get the numbers 0 to 2."""
    script = 'exec <&- >&- 2>&-; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *SUPERV, "third.good", "--root", str(tmp_path)], env=third
    )
    assert done.returncode == 0
