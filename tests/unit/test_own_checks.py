"""A site's own checks: three lines of site.yaml, and they are checks as any other is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from healthchecks.frame import own
from healthchecks.frame.registry import registered, select
from healthchecks.frame.runner import Order, run
from supervisor.config import load_site, parse_job
from supervisor.core.check_status import Status
from supervisor.engine.wiring import suites

JOB = (
    "name: a\nnodes: 1\nlauncher: local\ntrainer: {module: train}\npreflight: {tags: [preflight]}\n"
)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """They are checks of this process from when site.yaml was read."""
    yield
    own.register({})


def site_file(path: Path, **checks: Any) -> dict[str, str]:
    (path / "site.yaml").write_text(
        yaml.safe_dump({"own_checks": checks, "ports": {"ignore": ["mlx5_9"]}})
    )
    return {**os.environ, "SUPERV_SITE": str(path / "site.yaml")}


@pytest.mark.parametrize(
    ("given", "status", "seen"),
    [
        ({"command": ["true"]}, Status.OK, "it ended well"),
        ({"command": ["echo", "all well"]}, Status.OK, "all well"),
        ({"command": ["false"]}, Status.FAIL, "false ended with 1"),
        ({"command": ["false"], "exit_code": 1}, Status.OK, "it ended well"),
        ({"command": ["false"], "status": "WARN"}, Status.WARN, "false ended with 1"),
        ({"command": ["echo", "v24.10"], "output": r"^v24\.10$"}, Status.OK, "v24.10"),
        (
            {"command": ["echo", "v24.100"], "output": r"^v24\.10$"},
            Status.FAIL,
            "printed 'v24.100'",
        ),
        ({"command": ["true"], "output": "x"}, Status.FAIL, "it printed nothing"),
        ({"command": ["echo", "$HOME; id"], "output": r"^\$HOME; id$"}, Status.OK, "$HOME; id"),
        ({"command": ["sleep", "60"], "deadline_s": 0.1}, Status.UNKNOWN, "did not answer"),
        ({"command": ["no-such-program"]}, Status.UNKNOWN, "not installed"),
    ],
)
def test_what_a_command_does_is_what_the_check_finds(
    given: dict[str, Any], status: Status, seen: str
) -> None:
    own.register({"mine": given})
    (found,) = run(Order(checks=select(["site.mine"]))).findings
    assert found.status is status and seen in found.result.seen, found.result


def test_it_is_in_its_suites_and_drains_only_where_that_was_said() -> None:
    own.register({"a": {"command": ["true"]}, "b": {"command": ["true"], "drains": True}})
    there = registered()
    assert (there["site.a"].drains, there["site.b"].drains) == (False, True)
    assert {"site.a", "site.b"} <= {check.name for check in select(tags=["preflight"])}
    assert "site.a" not in {check.name for check in select(tags=["running"])}


def test_another_node_is_told_what_they_are(tmp_path: Path) -> None:
    env = site_file(tmp_path, mine={"command": ["echo", "here"]})
    own_checks = own.documents(load_site(env).own_checks)
    order = {"names": ["site.mine"], "settings": {"own_checks": own_checks}}
    done = subprocess.run(
        [sys.executable, "-m", "healthchecks"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=60,
    )
    (row,) = json.loads(done.stdout)["results"]
    assert (row["check"], row["status"], row["seen"]) == ("site.mine", "OK", "here")


def test_agents_run_them_before_ranks(tmp_path: Path) -> None:
    site = load_site(site_file(tmp_path, mine={"command": ["true"]}))
    assert "site.mine" in suites(parse_job(JOB, tmp_path / "job.yaml"), site)["before"]


def test_a_job_can_set_nothing_of_them(tmp_path: Path) -> None:
    from supervisor.core.errors import UserError

    more = "  checks: {site.mine: {command: [id]}}\n"
    job = parse_job(JOB.replace("{tags: [preflight]}\n", "\n  tags: [preflight]\n") + more,
                    tmp_path / "job.yaml")  # fmt: skip
    with pytest.raises(UserError, match=r"site\.mine: no key 'command'"):
        suites(job, load_site(site_file(tmp_path, mine={"command": ["true"]})))


@pytest.mark.skipif(os.geteuid() != 0, reason="what root would run")
def test_root_runs_no_program_that_a_user_could_have_put_there(tmp_path: Path) -> None:
    program = tmp_path / "mine"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    os.chown(program, 65534, 65534)
    own.register({"mine": {"command": [str(program)]}})
    (found,) = run(Order(checks=select(["site.mine"]))).findings
    assert found.status is Status.UNKNOWN and "is not run as root" in found.result.seen
