"""The recipes of docs/recipes, followed word for word in a copy of the tree.

A recipe is Markdown. What stands before a block of code says where it goes:

- "New file `PATH`" makes the file
- "In `PATH`, below `WORDS`": under the one line that holds these words, as deep as that line, or
  one level deeper where it opens something; "above `WORDS`": over it, for methods
- "At the end of `PATH`": two lines below the rest

Blocks of `sh` are run. Whatever else stands there is for people.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
RECIPES = REPO / "docs" / "recipes"
# A recipe's name → how many files are touched by hand, its test among them.
FILES = {
    "check": 2,
    "command": 3,
    "launcher": 3,
    "policy-key": 3,
    "cause": 4,
    "order": 5,
}
NEW = re.compile(r"New file `(?P<path>[^`]+)`.*:$")
IN = re.compile(r"In `(?P<path>[^`]+)`, (?P<where>below|above) `(?P<words>[^`]+)`.*:$")
END = re.compile(r"At the end of `(?P<path>[^`]+)`.*:$")
BLOCK = re.compile(r"^(?P<say>[^\n]*)\n\n```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
PYTHON = ".venv/bin"


@dataclass
class RecipeTree:
    """A copy of the tree, and which files of it a recipe has touched."""

    root: Path
    touched: set[str] = field(default_factory=set)

    def follow(self, recipe: str) -> None:
        blocks = list(BLOCK.finditer(recipe))
        assert len(blocks) == recipe.count("\n```") // 2, "a block has no line before it"
        for block in blocks:
            self._step(block["say"], block["kind"], block["text"])

    def _step(self, say: str, kind: str, text: str) -> None:
        if kind == "sh":
            for line in text.splitlines():
                self._run(line)
        elif new := NEW.search(say):
            assert not (self.root / new["path"]).exists(), f"{new['path']} is there"
            (self.root / new["path"]).write_text(text)
            self.touched.add(new["path"])
        elif old := IN.search(say):
            self._insert(old["path"], old["words"], text, above=old["where"] == "above")
        elif end := END.search(say):
            with (self.root / end["path"]).open("a") as file:
                file.write("\n\n" + text)
            self.touched.add(end["path"])
        else:
            raise AssertionError(f"what to do with a block after {say!r}?")

    def _insert(self, path: str, words: str, text: str, *, above: bool) -> None:
        lines = (self.root / path).read_text().splitlines(keepends=True)
        found = [number for number, line in enumerate(lines) if words in line]
        assert len(found) == 1, f"{path}: {len(found)} lines hold {words!r}"
        (at,) = found
        deep = len(lines[at]) - len(lines[at].lstrip())
        if above:
            lines.insert(at, textwrap.indent(text, " " * deep) + "\n")
        else:
            deep += 4 if lines[at].rstrip()[-1] in "([{:" else 0
            lines.insert(at + 1, textwrap.indent(text, " " * deep))
        (self.root / path).write_text("".join(lines))
        self.touched.add(path)

    def _run(self, line: str) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
        path = f"{self.root / PYTHON}:{Path(sys.executable).parent}:{kept['PATH']}"
        words = line.replace("superv ", "python -m supervisor.cli ", 1)
        done = subprocess.run(
            ["sh", "-c", words if line.startswith("superv ") else line],
            cwd=self.root,
            env={**kept, "PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@pytest.fixture
def tree(tmp_path: Path) -> RecipeTree:
    """Everything but what begins with a dot, and a Python that finds superv there alone."""
    for path in REPO.iterdir():
        if path.is_dir() and not path.name.startswith((".", "build", "dist", "superv.")):
            leave = shutil.ignore_patterns("__pycache__", "out")
            shutil.copytree(path, tmp_path / path.name, ignore=leave)
        elif path.is_file() and not path.name.startswith("."):
            shutil.copy(path, tmp_path)
    venv.create(tmp_path / ".venv", symlinks=True)
    (place,) = (tmp_path / ".venv").glob("lib/*/site-packages")
    (place / "copy.pth").write_text(f"{tmp_path}\n{sysconfig.get_path('purelib')}\n")
    return RecipeTree(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_works_as_it_is_written(name: str, tree: RecipeTree) -> None:
    tree.follow((RECIPES / f"{name}.md").read_text())
    assert len(tree.touched) == FILES[name], sorted(tree.touched)
    ruff = [sys.executable, "-m", "ruff"]
    python = [path for path in tree.touched if path.endswith(".py")]
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [*ruff, *check, *python], cwd=tree.root, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


def test_the_table_of_recipes_says_how_many_files() -> None:
    page = (REPO / "docs" / "contributing.md").read_text()
    rows = re.findall(r"\(recipes/([\w-]+)\.md\) \| (\d+) \|", page)
    assert {name: int(files) for name, files in rows} == FILES
    assert {path.stem for path in RECIPES.glob("*.md")} == set(FILES)
