"""Nothing that ranks, Slurm or files say steers the terminal of whoever reads superv's output.

Every command writes through one stream that lets lines and colours through; the property is that
stream's, and the commands are held to it.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scenario import spec

from supervisor.core import events as ev
from supervisor.core.machine import step
from supervisor.core.types import RankExit
from supervisor.host.terminal import PrintableStream, rendered, styled
from supervisor.run.journal import Journal

ROOT = Path(__file__).parents[2]
EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202edetrevni\r\x1b[31m"
STYLE = re.compile("\x1b\\[[0-9;]*m")


def steers(text: str) -> str:
    """What is left of a text that a terminal obeys, but for colours."""
    return "".join(c for c in STYLE.sub("", text) if not c.isprintable() and c not in "\n\t")


@given(
    st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\x1b[]0;31mJH\x07\x9b\r\n\u202e")))
)
def test_whatever_is_written_comes_out_printable(text: str) -> None:
    out = io.StringIO()
    PrintableStream(out).write(text)
    assert steers(out.getvalue()) == ""


def test_pages_and_colours_come_out_as_they_are() -> None:
    page = rendered([styled(("held", "bold red"), ": a\tb")], colour=True)
    out = io.StringIO()
    stream = PrintableStream(out)
    stream.writelines([page])
    assert out.getvalue() == page and "\x1b[" in page
    assert stream.behind is out and not stream.isatty()


def test_commands_write_to_nothing_else() -> None:
    """No bytes, no descriptors: those would pass the stream by."""
    found = []
    for path in (ROOT / "supervisor").rglob("*.py"):
        if path.parent.name not in ("cli", "report", "doctor", "fleet", "launchers"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in (
                "buffer",
                "__stdout__",
                "__stderr__",
            ):
                found.append(f"{path.name}:{node.lineno}")
    assert found == []


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A run in which everything that comes from outside holds a sequence."""
    run = tmp_path / "state/runs/moe"
    run.mkdir(parents=True, mode=0o700)
    for folder in (tmp_path / "state", tmp_path / "state/runs"):
        folder.chmod(0o755)
    journal = Journal(run / "journal.jsonl")
    state = None
    for event in _events():
        state, actions = step(state, event)
        journal.append(event, actions, epoch=1)
    journal.close()
    (run / "engine.log").write_text(f"2026-11-26T08:00:00Z INFO {EVIL}\n")
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"state_dir": str(tmp_path / "state")}))
    return tmp_path


def _events() -> list[ev.Event]:
    slots = ("n1", "n2")
    job = ev.AdoptedJob(
        job_id="7", job_name="superv-moe-012345-1", raw=f"RUNNING{EVIL}", nodes=slots, reason=EVIL
    )
    agents = tuple(
        ev.AdoptedAgent(node=n, job_id="7", address="10.0.0.1", port=1, agent=n) for n in slots
    )
    first = ev.Adopted(
        at=1000.0,
        who=EVIL,
        why=EVIL,
        spec=spec(),
        endpoint="tcp://10.0.0.1:1",
        jobs=(job,),
        attempt=1,
        slots=slots,
        agents=agents,
    )
    exit_ = RankExit(node="n1", rank=0, code=1, signal=None, at=1001.0, tail=(EVIL,))
    return [
        first,
        ev.EngineStarted(at=1000.5, epoch=1, host=EVIL, endpoint="tcp://10.0.0.1:1"),
        ev.RankExited(at=1001.0, attempt=1, exit=exit_),
        ev.AgentLeft(at=1002.0, node="n2", agent="n2", reason=EVIL),
    ]


COMMANDS = (
    ["status"],
    ["status", "moe"],
    ["status", "moe", "--json"],
    ["status", "--json"],
    ["report", "--run", "moe"],
    ["report", "--run", "moe", "--format", "json"],
    ["report", "--run", "moe", "--format", "md"],
    ["checkpoints", "list", "moe"],
    ["checkpoints", "list", "moe", "--json"],
    ["checkpoints", "list", f"./{EVIL}".replace("\x9b", "")],
    ["logs", "moe"],
    ["stop", EVIL.replace("\x9b", "")],
)


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: " ".join(argv[:3]).replace(EVIL, "X"))
def test_no_command_lets_a_sequence_through(home: Path, argv: list[str]) -> None:
    env = {**os.environ, "SUPERV_SITE": str(home / "site.yaml")}
    done = subprocess.run(
        [sys.executable, "-m", "supervisor.cli", *argv],
        env=env,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout + done.stderr and "Traceback" not in done.stderr, done.stderr
    assert steers(done.stdout + done.stderr) == ""
    if "--json" in argv:
        json.loads(done.stdout)
