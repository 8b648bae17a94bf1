"""A run's folder with something broken in it: the error names that file, and what to do."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from scenario import spec

from supervisor.core import events as ev
from supervisor.core.errors import UserError
from supervisor.core.machine import step
from supervisor.run import folder
from supervisor.run.journal import Journal, LostJournalError

JOB = """
name: moe
nodes: 2
launcher: local
trainer: {command: [/bin/true], ranks_per_node: 1}
"""


@pytest.fixture
def run(tmp_path: Path) -> folder.RunDir:
    path = tmp_path / "state/runs/moe"
    path.mkdir(parents=True, mode=0o700)
    for parent in (path.parent, path.parent.parent):
        parent.chmod(0o755)
    made = folder.RunDir(path)
    folder.write(
        made, source=JOB, origin=tmp_path / "origin.yaml", env={"PATH": "/bin"}, secrets={"A": "b"}
    )
    folder.write_keys(made, folder.new_keys("0" * 12))
    made.code_facts.write_text("{}")
    journal = Journal(made.journal)
    first = ev.Launched(at=1.0, spec=spec())
    second = ev.EngineStarted(at=2.0, epoch=1, host="login", endpoint="tcp://10.0.0.1:1")
    state = None
    for event in (first, second, second):
        state, actions = step(state, event)
        journal.append(event, actions, epoch=1)
    journal.close()
    return made


def test_a_broken_copy_of_the_job_is_named_and_not_the_origin(run: folder.RunDir) -> None:
    assert folder.read_job(run).name == "moe"
    for text, why in ((JOB + "nods: 3\n", "nods"), ("", "empty"), ("{", "not valid YAML")):
        run.job_file.write_text(text)
        with pytest.raises(UserError, match=why) as caught:
            folder.read_job(run)
        said = str(caught.value)
        assert said.startswith(str(run.job_file)) and "put the file back" in said
        assert said.count("origin.yaml") == 1


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("keys.json", folder.read_server_keys),
        ("environment.json", folder.read_environment),
        ("secrets.json", folder.read_secrets),
        ("code.json", folder.read_code),
    ],
)
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a": 1}'])
def test_any_other_kept_file_is_named(
    run: folder.RunDir, name: str, read: Callable[[folder.RunDir], object], content: bytes
) -> None:
    (run.path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(run)
    assert str(caught.value).startswith(f"{run.path / name}: damaged")


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def other_version(path: Path) -> None:
    """A line that is whole, and that this superv does not know."""
    first, second, *rest = lines(path)
    data = json.loads(second)
    del data["crc"]
    data["event"]["kind"] = "FromTheFuture"
    body = json.dumps(data, separators=(",", ":")).encode()
    new = b'{"crc":"%08x",' % zlib.crc32(body) + body[1:] + b"\n"
    path.write_bytes(b"".join((first, new, *rest)))


LOSSES: dict[str, tuple[Callable[[Path], object], str]] = {
    "deleted": (Path.unlink, "gone"),
    "emptied": (lambda p: p.write_bytes(b""), "empty"),
    "zeros": (lambda p: p.write_bytes(b"\0" * 4096), "empty"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "can't be read: Is a directory"),
    "a loop": (lambda p: (p.unlink(), p.symlink_to(p)), "can't be read"),
    "its beginning is gone": (
        lambda p: p.write_bytes(b"".join(lines(p)[1:])),
        "line 2 stands here",
    ),
    "the middle is gone": (
        lambda p: p.write_bytes(b"".join((lines(p)[0], *lines(p)[2:]))),
        "line 3 stands here",
    ),
    "a letter": (
        lambda p: p.write_bytes(p.read_bytes().replace(b"login", b"logim", 1)),
        ":2: damaged",
    ),
    "of another version": (
        other_version,
        "unknown kind 'FromTheFuture'; written by another superv",
    ),
}


@pytest.mark.parametrize("how", LOSSES)
def test_a_lost_journal_names_the_way_forward(run: folder.RunDir, how: str) -> None:
    lose, why = LOSSES[how]
    lose(run.journal)
    with pytest.raises(LostJournalError) as caught:
        run.load()
    assert why in caught.value.problem and str(run.journal) in caught.value.problem
    assert "`superv attach moe --adopt`" in caught.value.fix
    assert "`superv stop moe`" in caught.value.fix


def test_a_torn_last_line_is_no_loss(run: folder.RunDir) -> None:
    run.journal.write_bytes(run.journal.read_bytes()[:-7])
    assert run.load().epoch == 1


def test_a_state_dir_that_others_may_write_to_is_no_source(run: folder.RunDir) -> None:
    state = run.path.parent.parent
    assert folder.find(state, "moe").path == run.path
    for place in (run.path, run.path.parent):
        place.chmod(0o777)
        with pytest.raises(UserError, match="others may write there"):
            folder.find(state, "moe")
        place.chmod(0o755)
    run.path.parent.chmod(0o777)
    with pytest.raises(UserError, match="others may write there"):
        folder.every(state)
