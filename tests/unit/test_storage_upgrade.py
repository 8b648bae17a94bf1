"""An engine of superv 0.1 that outlives an upgrade in place goes on asking about storage."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

DCP = Path(__file__).resolve().parents[1] / "data/dcp/step-5"


def asked(*questions: dict[str, Any]) -> list[dict[str, Any]]:
    """As 0.1's supervisor/storage.py asks: a descriptor with each question, read to its end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    argv = [sys.executable, "-m", "supervisor.checkpoints", "serve", str(theirs.fileno())]
    answers = []
    with subprocess.Popen(argv, pass_fds=[theirs.fileno()]) as child, ours:
        theirs.close()
        for question in questions:
            end, out = os.pipe()
            socket.send_fds(ours, [json.dumps(question).encode()], [out])
            os.close(out)
            with os.fdopen(end, "rb") as answer:
                pid, _, told = answer.read().partition(b"\n")
            assert int(pid) != child.pid
            answers.append(json.loads(told))
        ours.close()
        assert child.wait(timeout=30) == 0
    return answers


def test_scan_verify_and_home_in_its_own_words(tmp_path: Path) -> None:
    home = tmp_path / "a0001"
    shutil.copytree(DCP, home / "step-5")
    (home / "step-10").mkdir()
    more = {"required": ["model"], "above": -1}
    scan, verified, nothing, first = asked(
        {"command": "scan", "path": str(home), **more},
        {"command": "verify", "path": str(home / "step-5"), **more},
        {"command": "scan", "path": str(tmp_path / "none"), **more},
        {"command": "home", "path": str(tmp_path)},
    )
    found = [(one["step"], one["state"]) for one in scan["answer"]["found"]]
    assert found == [(10, "incomplete"), (5, "verified")]
    assert scan["answer"].keys() == {"directory", "exists", "found", "schema"}
    assert [one["step"] for one in verified["answer"]["found"]] == [5]
    assert nothing["answer"]["exists"] is False
    assert first["answer"] == ["", 2]
