"""`superv status RUN` while an engine answers: what the page says of the engine itself."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from supervisor.cli.status import _facts, _page, status, summary
from supervisor.host import terminal

OLD = Path(__file__).parents[1] / "data/journals/ring-status.json"  # as superv 0.1 tells it


ENGINE = """
import socket, sys
server = socket.socket(fileno=int(sys.argv[1]))
server.listen()
print(flush=True)
while True:
    link, _ = server.accept()
    with link:
        if link.recv(1 << 16):
            link.sendall(sys.argv[2].encode() + b"\\n")
"""


@pytest.mark.parametrize("violations", [None, []])
def test_an_engine_of_before_an_upgrade_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, violations: list[object] | None
) -> None:
    told = json.loads(OLD.read_text())
    told.pop("violations", None)
    told |= {} if violations is None else {"violations": violations}
    folder = tmp_path / "runs/ring"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "journal.jsonl").touch()
    (tmp_path / "site.yaml").write_text(f"state_dir: {tmp_path}\n")
    monkeypatch.setenv("SUPERV_SITE", str(tmp_path / "site.yaml"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "control.sock"))
        engine = subprocess.Popen(
            [sys.executable, "-c", ENGINE, str(server.fileno()), json.dumps(told)],
            stdout=subprocess.PIPE,
            pass_fds=(server.fileno(),),
        )
    with engine:
        assert engine.stdout is not None
        engine.stdout.readline()  # it listens
        page = CliRunner().invoke(status, ["ring"]).output
        engine.kill()
    said = " ".join(page.split())
    order = f"of superv 0.1, which can't go on for long after an upgrade: `kill {engine.pid}`"
    assert "ring: " in said
    assert (order in said) is (violations is None), page


def test_nodes_with_one_state_and_reason_are_one_line_in_the_words_of_docs() -> None:
    told = json.loads(OLD.read_text())
    told |= {"engine": True, "excluded": []}
    told["unusable"] = [
        {"node": f"n{i}", "state": "unfit", "reason": why, "since": 1795661000.0 + i}
        for i, why in ((9, "no disk"), (7, "no disk"), (3, "another version"), (8, "no disk"))
    ]
    lines = [text for label, text in _facts(told) if label == "unusable"]
    assert [(text.split()[0], text.split(": ")[-1]) for text in lines] == [
        ("n[7-9]", "no disk"),
        ("n3", "another version"),
    ]


def test_what_needs_attention_stands_above_the_reason() -> None:
    told = json.loads(OLD.read_text()) | {"engine": True}
    text = "no checkpoint was verified for 90 min; the last good one is of step 4"
    told["attention"] = [{"what": "checkpoints", "since": None, "text": text, "fix": "look at it"}]
    lines = terminal.rendered(_page(told), colour=False).splitlines()
    assert summary(told).endswith(", needs attention: checkpoints")
    assert lines[1] == f"  needs attention: {text}"
    assert lines[2].strip() == "→ look at it"
    assert max(map(len, lines)) <= 100
