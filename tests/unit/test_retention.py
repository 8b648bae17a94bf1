"""What is done to checkpoint directories, and what is not touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.checkpoints import retention


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("a0001/step-10", "a0001/step-20", "a0002/step-30", "step-5", "a0002/other"):
        folder = tmp_path / "home" / name
        folder.mkdir(parents=True)
        (folder / ".metadata").write_text(name)
    return tmp_path / "home"


def ask(command: str, path: Path | str, home: Path) -> str:
    told = retention.answer({"command": command, "path": str(path), "home": str(home)})["answer"]
    assert isinstance(told, str)
    return told


def names(home: Path) -> list[str]:
    return sorted(str(p.parent.relative_to(home)) for p in home.rglob(".metadata"))


def test_a_discarded_one_is_gone_and_again_is_no_error(home: Path) -> None:
    for _ in range(2):
        assert ask("discard", home / "a0001/step-10", home) == ""
    assert names(home) == ["a0001/step-20", "a0002/other", "a0002/step-30", "step-5"]
    assert sorted(p.name for p in (home / "a0001").iterdir()) == ["step-20"]


def test_a_discard_that_was_cut_short_goes_on(home: Path) -> None:
    (home / "a0001" / retention.TRASH).mkdir()
    (home / "a0001/step-10").rename(home / "a0001" / retention.TRASH / "step-10")
    assert ask("discard", home / "a0001/step-10", home) == ""
    assert sorted(p.name for p in (home / "a0001").iterdir()) == ["step-20"]


def test_a_quarantined_one_is_moved_and_again_is_no_error(home: Path) -> None:
    for _ in range(2):
        assert ask("quarantine", home / "a0001/step-10", home) == ""
    assert "quarantine/a0001/step-10" in names(home) and len(names(home)) == 5


@pytest.mark.parametrize("command", ["discard", "quarantine"])
@pytest.mark.parametrize("name", ["step-5", "a0002/other", "a0001", "a0001/../a0001/step-10", ""])
def test_nothing_else_is_touched(home: Path, command: str, name: str) -> None:
    before = names(home)
    assert "not touched" in ask(command, f"{home}/{name}", home)
    assert "not touched" in ask(command, home / "a0001/step-10", home / "elsewhere")
    assert names(home) == before


@pytest.mark.parametrize("command", ["discard", "quarantine"])
def test_links_are_not_followed(home: Path, command: str) -> None:
    (home / "a0003").symlink_to(home / "a0001")
    (home / "a0002/step-40").symlink_to(home / "a0001/step-10")
    before = names(home)
    assert "is a link" in ask(command, home / "a0003/step-10", home)
    assert "is a link" in ask(command, home / "a0002/step-40", home)
    assert names(home) == before


def test_the_place_to_save_into(home: Path, tmp_path: Path) -> None:
    def look(path: Path) -> object:
        return retention.answer({"command": "home", "path": str(path)})["answer"]

    (tmp_path / "file").write_text("")
    assert look(home) == ["", 3]
    assert look(tmp_path / "new/er") == ["", 1]
    assert look(tmp_path / "file/in") == [
        f"{tmp_path}/file/in can't be made: {tmp_path}/file is not a directory",
        1,
    ]
    assert sorted(os.listdir(tmp_path)) == ["file", "home"]
    readonly = Path("/proc/sys")
    assert look(readonly) == [f"{readonly} can't be written: No such file or directory", 1] or (
        "can't be written" in str(look(readonly))
    )
