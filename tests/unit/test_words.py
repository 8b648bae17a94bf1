"""Words that readers stumble over: none in what superv says, nor in its documentation.

A row is a word, as a regular expression without regard to case, and what to write in its place.
Looked at are the strings of the source, docstrings among them (`--help`, docs/checks.md and the
report show many), templates and pages; not code in pages.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("supervisor", "healthchecks", "launchers", "lab", "ncclconf", "sbatch_templates")
BANNED = {
    r"needs? a hand": "action required",
    r"nought": "zero",
    r"mend(s|ed|ing)?": "fix, repair",
    r"(is|are|not) fine": "healthy, ok, tolerated",
    r"anew": "again, re-",
    r"for ever": "forever",
    r"lately": "recently",
    r"no beats?": "no heartbeat",
    r"in vain": "without an answer",
    r"none lives|engine lives|lives here": "is running",
    r"barred": "excluded",
    r"unfit": "unusable",
    r"ill (node|nodes|gpu)|(is|are) ill": "unhealthy",
    r"perchance|lest|thence|hence|whence|thereof|whereof|hitherto|ere|nigh|amidst|forthwith": "-",
    r"fruitless": "without progress",
    r"whilst|upon": "while, on",
}
# Formats: what is stored or typed keeps its spelling, as a string of its own.
TAGS = {"mend", "barred", "unfit", "fruitless"}


def sources() -> Iterator[Path]:
    listed = subprocess.run(
        ["git", "ls-files", *PACKAGES, "docs", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".j2", ".yaml") and path.exists():
            yield path


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """What people may read of a file, with the line that it begins in."""
    whole = path.read_text()
    if path.suffix != ".py":
        code = re.compile(r"^```.*?^```|`[^`\n]*`|^    .*?$", re.MULTILINE | re.DOTALL)
        yield 1, code.sub(lambda found: "\n" * found[0].count("\n"), whole)
        return
    for node in ast.walk(ast.parse(whole)):
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(node, ast.Constant) and isinstance(value, str) and value not in TAGS:
            yield node.lineno, value


def found_in(text: str) -> Iterator[tuple[int, str]]:
    """Banned words: on which line of the text, and what is wrong."""
    for word, instead in BANNED.items():
        for match in re.finditer(rf"\b(?:{word})\b", text, re.IGNORECASE):
            yield text.count("\n", 0, match.start()), f"{match[0]!r}: write {instead}"


def test_nobody_stumbles_over_a_word() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line + offset}: {problem}"
        for path in sources()
        for line, text in texts(path)
        for offset, problem in found_in(text)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "text", ["Nothing needs a hand.", "Mend it, then", "nought everywhere", "what is not\tfine"]
)
def test_what_is_banned_is_found(text: str) -> None:
    assert list(found_in(text.replace("\t", " ")))


def test_code_in_pages_and_tags_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("run `lab mend`\n\n    lab mend n1\n\n```\nmend\n```\nmend\n")
    (line, text), *_ = texts(tmp_path / "a.md")
    assert [line + offset for offset, _ in found_in(text)] == [8]
    (tmp_path / "a.py").write_text('x = "mend"\ny = f"{x} mend"\n')
    lines = [line for line, text in texts(tmp_path / "a.py") if list(found_in(text))]
    assert lines == [2]
