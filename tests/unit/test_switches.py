"""A site switches a check off, or a target or device of it: by name, on a group of nodes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from test_health_runner import made

from healthchecks.frame.check import Findings, Result, Status
from healthchecks.frame.context import Ctx
from healthchecks.frame.registry import registered
from healthchecks.frame.runner import Order, run
from healthchecks.frame.settings import of_site
from healthchecks.frame.switched_off import of_job, without_effect
from healthchecks.frame.switches import OFF, common, of_node
from supervisor.cli.check import check
from supervisor.config import load_site, parse_job
from supervisor.core.errors import UserError
from supervisor.engine.wiring import _health, suites

JOB = (
    "name: a\nnodes: 1\nlauncher: local\ntrainer: {module: train}\npreflight: {tags: [preflight]}\n"
)


def ports(ctx: Ctx) -> Result:
    found = Findings()
    for port in ("mlx5_0", "mlx5_9"):
        found.fail("down", device=port, expected="up", fix="look at the cable")
    return found.result("all up")


def mounted(ctx: Ctx, target: str) -> Result:
    return Result(status=Status.FAIL, seen=f"{target} is full", expected="room", fix="clean up")


def looked(settings: dict[str, Any], *checks: Any, node: str = "n1") -> dict[str, Result]:
    report = run(Order(checks=checks or (made("a.b", ports),), settings=settings, node=node))
    return {finding.name: finding.result for finding in report.findings} | {
        "notes": "; ".join(report.notes)  # type: ignore[dict-item]
    }


def test_a_check_that_is_off_is_skip_and_the_report_says_so() -> None:
    found = looked({"a.b": {"enabled": False}})
    assert found["a.b"].status is Status.SKIP
    assert found["a.b"].seen == f"{OFF} (a.b: enabled: false)"
    assert found["notes"] == "1 switched off, not looked at: a.b"


def test_a_device_that_is_ignored_is_not_judged_and_named() -> None:
    found = looked({"a.b": {"ignore": ["mlx5_[89]"]}})["a.b"]
    assert (found.status, found.devices) == (Status.FAIL, ("mlx5_0",))
    assert found.seen == "mlx5_0: down; not judged (ignore): mlx5_9"
    assert looked({"a.b": {"ignore": ["mlx5_*"]}})["a.b"].status is Status.OK


def test_a_target_that_is_ignored_is_not_touched() -> None:
    check = made("fs", mounted, targets=lambda ctx: ["/", "/scratch/x"])
    found = looked({"fs": {"ignore": ["/scratch/*"]}}, check)
    assert (found["fs[/]"].status, found["fs[/scratch/x]"].status) == (Status.FAIL, Status.SKIP)
    assert found["notes"] == "1 switched off, not looked at: fs[/scratch/x]"


@pytest.mark.parametrize(
    ("group", "status"),
    [
        ({"nodes": "n[1-3]"}, Status.SKIP),
        ({"nodes": "n[2-3]"}, Status.FAIL),
        ({"partition": "debug"}, Status.SKIP),
        ({"partition": "train"}, Status.FAIL),
    ],
)
def test_groups_say_it_for_their_nodes(
    group: dict[str, str], status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_PARTITION", "debug")
    one = {"nodes": "", "partition": "", "checks": {"a.b": {"enabled": "false"}}} | group
    assert looked({"groups": {"groups": [one]}})["a.b"].status is status


def test_of_groups_the_last_one_holds_over_the_site() -> None:
    groups = [
        {"nodes": "n1", "partition": "", "checks": {"a.b": {"enabled": False}}},
        {"nodes": "n[1-9]", "partition": "", "checks": {"a.b": {"enabled": True}}},
    ]
    found = looked({"a.b": {"ignore": ["*"]}, "groups": {"groups": groups}})
    assert found["a.b"].status is Status.OK


def test_every_check_takes_them_but_for_an_ignore_of_its_own() -> None:
    for one in registered().values():
        taken = common(one, {"enabled": False, "ignore": []})
        assert "enabled" in taken
        assert ("ignore" in taken) is ("ignore" not in one.options())


def site_of(tmp_path: Path, **keys: Any) -> Any:
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(keys))
    return load_site({**os.environ, "SUPERV_SITE": str(tmp_path / "site.yaml")})


def test_nodes_and_agents_are_told(tmp_path: Path) -> None:
    group = {"nodes": "n[1-2]", "checks": {"xid": {"enabled": False}}}
    site = site_of(tmp_path, groups=[group], checks={"fs.local": {"ignore": ["/boot"]}})
    settings = of_site(site)
    assert settings["fs.local"] == {"ignore": ["/boot"]}
    (told,) = settings["groups"]["groups"]
    assert told == {"partition": "", "nodes": "n[1-2]", "checks": {"xid": {"enabled": "false"}}}
    assert "xid" in suites(parse_job(JOB, tmp_path / "job.yaml"), site)["before"]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"checks": {"xid": {"enabled": "maybe"}}}, "site.yaml:3: checks: xid: enabled: expected "),
        ({"checks": {"fs.local": {"ignroe": []}}}, "no key 'ignroe'; valid: "),
        (
            {"groups": [{"nodes": "n1", "checks": {"xidd": {}}}]},
            "site.yaml:3: groups[0]: no check 'xidd'",
        ),
    ],
)
def test_mistakes_say_where(tmp_path: Path, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        of_site(site_of(tmp_path, **keys))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_list_says_what_is_switched_off_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = {"nodes": "n7", "checks": {"fs.local": {"ignore": ["/scratch*"]}}}
    site_of(tmp_path, checks={"xid": {"enabled": False}}, groups=[group])
    monkeypatch.setenv("SUPERV_SITE", str(tmp_path / "site.yaml"))
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    shown = CliRunner().invoke(check, ["--list", "xid", "fs.local"]).output
    words = " ".join(shown.split())
    assert f"switched off here: enabled: false ({tmp_path}/site.yaml:3)" in words
    assert f"switched off here: ignore: /scratch* ({tmp_path}/site.yaml:7)" in words
    args = ["--list", "xid", "fs.local", "--set", "fs.local.ignore=/a,/b"]
    typed = CliRunner().invoke(check, args).output
    assert "switched off here: ignore: /a, /b (--set)" in typed
    rows = json.loads(CliRunner().invoke(check, ["--list", "--json", "xid", "kernel"]).output)
    assert [(row["check"], row["enabled"]) for row in rows["checks"]] == [
        ("kernel", True),
        ("xid", False),
    ]


def test_gpus_are_ignored_by_serial_number_uuid_or_address(tmp_path: Path) -> None:
    def handles(ctx: Ctx) -> Result:
        names = {"mlx5_0": ["1653", "GPU-9", "0000:4e:00.0"]}
        ctx.memory.put("names", names, lasting=True)
        return Result(status=Status.OK, seen="all there")

    pair = (made("gpu.handle", handles), made("a.b", ports))
    for pattern in ("1653", "GPU-9*", "0000:4e:00.0"):
        order = Order(
            checks=pair,
            settings={"a.b": {"ignore": [pattern]}},
            node="n1",
            folder=tmp_path / "state",
        )
        run(order)
        (found,) = [f.result for f in run(order).findings if f.check == "a.b"]
        assert found.devices == ("mlx5_9",), pattern


def test_what_is_typed_holds_over_groups_and_makes_lists(tmp_path: Path) -> None:
    group = {"nodes": "n1", "checks": {"xid": {"enabled": False}, "fs.local": {"ignore": ["/a"]}}}
    settings = of_site(
        site_of(tmp_path, groups=[group]), ["xid.enabled=true", "fs.local.ignore=/b"]
    )
    assert of_node(settings, "n1", "") == {
        "xid": {"enabled": "true"},
        "fs.local": {"ignore": ["/b"]},
    }


def job_of(tmp_path: Path, **checks: Any) -> Any:
    text = yaml.safe_dump({**yaml.safe_load(JOB), "preflight": {"checks": checks}})
    return parse_job(text, tmp_path / "job.yaml")


def test_a_job_sets_limits_on_every_node_and_loses_no_ignore_of_the_site(tmp_path: Path) -> None:
    group = {"nodes": "n1", "checks": {"fs.local": {"warn_percent": 70}}}
    site = site_of(tmp_path, groups=[group], checks={"fs.local": {"ignore": ["/a"]}})
    health = _health(job_of(tmp_path, **{"fs.local": {"warn_percent": 90, "ignore": ["/b"]}}), site)
    assert health is not None
    found = {node: of_node(health.settings, node, "")["fs.local"] for node in ("n1", "n2")}
    assert found["n1"] == found["n2"] == {"warn_percent": "90", "ignore": ["/a", "/b"]}


def test_what_a_job_can_not_switch_on_is_said(tmp_path: Path) -> None:
    site = site_of(tmp_path, checks={"xid": {"enabled": False}})
    job = job_of(tmp_path, xid={"enabled": True}, clock={"enabled": True})
    assert without_effect(job, site) == [
        f"{tmp_path}/job.yaml:9: xid: enabled: true has no effect: {tmp_path}/site.yaml:3 has "
        "switched it off; a job may leave out more, and nothing less"
    ]
    assert [
        (who, off.check, off.where) for who, off in of_job([*registered().values()], job, site)
    ] == [("", "xid", f"{tmp_path}/site.yaml:3")]


@pytest.mark.parametrize(
    ("site", "job", "enabled", "ignored"),
    [
        ({"enabled": False}, {}, "false", None),
        ({"enabled": False}, {"enabled": True}, "false", None),
        ({"enabled": True}, {"enabled": False}, "false", None),
        ({}, {"enabled": True}, "true", None),
        ({"ignore": ["/a"]}, {"ignore": []}, None, ["/a"]),
        ({"ignore": ["/a"]}, {"ignore": ["/b", "/a"]}, None, ["/a", "/b"]),
    ],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_a_job_leaves_out_what_the_site_does_and_may_leave_out_more(
    tmp_path: Path, site: Any, job: Any, enabled: Any, ignored: Any, grouped: bool
) -> None:
    checks = {"fs.local": site}
    keys = {"groups": [{"nodes": "n1", "checks": checks}]} if grouped else {"checks": checks}
    text = yaml.safe_dump({**yaml.safe_load(JOB), "preflight": {"checks": {"fs.local": job}}})
    parsed = parse_job(text, tmp_path / "job.yaml")
    health = _health(parsed, site_of(tmp_path, **keys))
    assert health is not None
    found = of_node(health.settings, "n1", "")["fs.local"]
    assert (found.get("enabled"), found.get("ignore")) == (enabled, ignored)
