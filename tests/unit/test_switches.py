"""A site switches a check off, or a target or device of it: by name, on a group of nodes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_health_runner import made

from healthchecks.frame.check import Findings, Result, Status
from healthchecks.frame.context import Ctx
from healthchecks.frame.registry import registered
from healthchecks.frame.runner import OFF, Order, run
from healthchecks.frame.settings import of_site
from healthchecks.frame.switches import common
from supervisor.config import load_site, parse_job
from supervisor.core.errors import UserError
from supervisor.engine.wiring import suites

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
    assert (found["a.b"].status, found["a.b"].seen) == (Status.SKIP, OFF)
    assert found["notes"] == "switched off by settings: a.b"


def test_a_device_that_is_ignored_is_not_judged_and_named() -> None:
    found = looked({"a.b": {"ignore": ["mlx5_[89]"]}})["a.b"]
    assert (found.status, found.devices) == (Status.FAIL, ("mlx5_0",))
    assert found.seen == "mlx5_0: down; not judged (ignore): mlx5_9"
    assert looked({"a.b": {"ignore": ["mlx5_*"]}})["a.b"].status is Status.OK


def test_a_target_that_is_ignored_is_not_touched() -> None:
    check = made("fs", mounted, targets=lambda ctx: ["/", "/scratch/x"])
    found = looked({"fs": {"ignore": ["/scratch/*"]}}, check)
    assert (found["fs[/]"].status, found["fs[/scratch/x]"].status) == (Status.FAIL, Status.SKIP)
    assert found["notes"] == "switched off by settings: fs[/scratch/x]"


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
    for check in registered().values():
        taken = common(check, {"enabled": False, "ignore": []})
        assert "enabled" in taken
        assert ("ignore" in taken) is ("ignore" not in check.options())


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
        ({"checks": {"xid": {"enabled": "maybe"}}}, "checks: xid: enabled: expected "),
        ({"checks": {"fs.local": {"ignroe": []}}}, "no key 'ignroe'; valid: "),
        (
            {"groups": [{"nodes": "n1", "checks": {"xidd": {}}}]},
            "groups[0].checks: no check 'xidd'",
        ),
    ],
)
def test_mistakes_say_where(tmp_path: Path, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        of_site(site_of(tmp_path, **keys))
    assert says in str(caught.value) and "\n" not in str(caught.value)
