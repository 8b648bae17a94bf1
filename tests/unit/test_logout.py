"""Engines and logind: what ends at logout, and the unit that docs/systemd.md gives."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from supervisor.core.check_status import Status
from supervisor.doctor import logout

ROOT = Path(__file__).parents[2]
ME = pwd.getpwuid(os.getuid()).pw_name


def machine(root: Path, conf: str = "", *, drop_in: str = "", lingers: bool = False) -> Path:
    (root / "run/systemd/seats").mkdir(parents=True)
    (root / "etc/systemd/logind.conf.d").mkdir(parents=True)
    (root / "etc/systemd/logind.conf").write_text(f"[Login]\n{conf}\n")
    if drop_in:
        (root / "etc/systemd/logind.conf.d/50-site.conf").write_text(f"[Login]\n{drop_in}\n")
    if lingers:
        (root / "var/lib/systemd/linger").mkdir(parents=True)
        (root / "var/lib/systemd/linger" / ME).touch()
    return root


KILLS = "KillUserProcesses=yes\nKillExcludeUsers="


@pytest.mark.parametrize(
    ("made", "status", "says"),
    [
        ({}, Status.OK, "after a reboot nobody starts them"),
        ({"lingers": True}, Status.OK, "the user unit in docs/systemd.md starts them"),
        ({"conf": "#KillUserProcesses=yes"}, Status.OK, "outlive logout"),
        ({"conf": KILLS}, Status.WARN, "an engine ends when"),
        ({"conf": KILLS, "lingers": True}, Status.WARN, "lingering alone spares no session"),
        ({"conf": "KillUserProcesses=no", "drop_in": KILLS}, Status.WARN, "loginctl enable-linger"),
        ({"conf": KILLS, "drop_in": "KillUserProcesses=no"}, Status.OK, "outlive logout"),
        ({"conf": f"{KILLS}{ME} other"}, Status.OK, "outlive logout"),
        ({"conf": f"{KILLS}\nKillOnlyUsers=other"}, Status.OK, "outlive logout"),
    ],
)
def test_what_logind_does_to_engines(
    tmp_path: Path, made: dict[str, str | bool], status: Status, says: str
) -> None:
    found = logout.look(os.getuid(), machine(tmp_path, **made))  # type: ignore[arg-type]
    assert found.status is status
    assert says in f"{found.result.seen} {found.result.fix}"


def test_without_logind_nobody_ends_engines(tmp_path: Path) -> None:
    assert logout.look(os.getuid(), tmp_path).status is Status.OK
    assert logout.look(12345678, machine(tmp_path)).status is Status.OK  # a user without a name


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_the_unit_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs/systemd.md").read_text()
    (unit,) = re.findall(r"```ini\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "superv@.service"
    path.write_text(unit.replace("/opt/superv/bin/superv", "/bin/true"))
    argv = ["systemd-analyze", "--user", "verify", str(path)]
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    good = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=env)
    assert "superv@" not in good.stderr, good.stderr
    path.write_text(path.read_text().replace("RestartSec=30", "RestartSec=soon"))
    bad = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=env)
    assert "RestartSec" in bad.stderr or "soon" in bad.stderr, "it would not have told"
