"""The tool that breaks checks: what it changes, and that it tells a noticed change from another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.mutants.__main__ import ROOT, main
from tests.mutants.mutations import mutants

CHECK = '''"""Heat."""

LIMIT_C = 85.0
WORDS = {"on fire": "FAIL"}


def heat(celsius, line=""):
    """Judge."""
    for needle, status in WORDS.items():
        if needle in line:
            return status
    return "WARN" if celsius >= LIMIT_C else "OK"
'''
TEST = """from healthchecks.checks import heat


def test_warm():
    assert heat.heat(95.0) == "WARN"
    assert heat.heat(20.0) == "OK"


def test_a_line():
    assert heat.heat(20.0, "GPU 3 is on fire") == "FAIL"
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of one check, and of its tests."""
    root = tmp_path / "tree"
    checks = root / "healthchecks" / "checks"
    checks.mkdir(parents=True)
    (root / "tests" / "contract").mkdir(parents=True)
    (root / "healthchecks" / "__init__.py").write_text("")
    (checks / "__init__.py").write_text("")
    (checks / "heat.py").write_text(CHECK)
    (root / "tests" / "contract" / "test_checks_heat.py").write_text(TEST)
    return root


def test_what_is_changed() -> None:
    source = (
        'import re\n_FIX = "some words"\n_LINE = re.compile(r"link (?:down|lost)")\n'
        "def look(ctx, found, *, most: int = 85):\n"
        '    """At most 90 of them."""\n'
        '    if ctx.number("dev/x") > most or found.status is Status.FAIL:\n'
        '        found.fail("77 of 88", fix="reseat it")\n'
    )
    assert [(m.line, m.what.partition(" in ")[0][:40]) for m in mutants("x.py", source)] == [
        (3, "'link (?:down|lost)' → 'link~ (?:down|lo"),
        (3, "'link (?:down|lost)' → 'link (?:down|los"),
        (4, "85 → 86"),
        (6, "> → >="),
        (6, "'dev/x' → 'dev~/x'"),
        (6, "FAIL → WARN"),
        (7, "fail → warn: found.fail('77 of 88', fix="),
    ]


def test_what_is_noticed_and_what_survives(tree: Path, tmp_path: Path) -> None:
    """The line that says FAIL is tried. What becomes of a GPU between 20 and 95 °C is not."""
    out = tmp_path / "out"
    before = sorted(p for p in tree.rglob("*") if p.is_file())
    assert main(["--out", str(out)], tree) == 1
    rows = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()][1:]
    red = {row["mutant"].partition("heat.py:")[2]: row["red"].rpartition("::")[2] for row in rows}
    assert red == {
        "3: 85.0 → 93.5": "",
        "4: 'on fire' → 'on~ fire'": "test_a_line",
        "4: 'FAIL' → 'FAIL~'": "test_a_line",
        "10: in → not in in needle in line": "test_warm",
        "12: >= → > in celsius >= LIMIT_C": "",
        "12: 'WARN' → 'WARN~'": "test_warm",
        "12: 'OK' → 'OK~'": "test_warm",
    }
    assert (out / "survivors.txt").read_text() == (
        "healthchecks/checks/heat.py:3: 85.0 → 93.5\n"
        "healthchecks/checks/heat.py:12: >= → > in celsius >= LIMIT_C\n"
    )
    assert sorted(p for p in tree.rglob("*") if p.is_file()) == before


def test_a_sample_and_shares(tree: Path, tmp_path: Path) -> None:
    """Shares are all of it together, without anything twice; a sample is as large as was asked."""

    def tried(*more: str) -> set[str]:
        main(["--out", str(tmp_path), *more], tree)
        rows = (tmp_path / "trials.jsonl").read_text().splitlines()[1:]
        return {json.loads(row)["mutant"] for row in rows}

    one, two = tried("--share", "1/2"), tried("--share", "2/2")
    assert (len(one), len(two), len(one | two)) == (4, 3, 7)
    assert len(tried("--sample", "2", "--seed", "3")) == 2


def test_nothing_is_left_where_it_is_ended(tree: Path, tmp_path: Path) -> None:
    """Its copy of the tree, and pytest in it, end with it."""
    (tree / "tests/contract/test_checks_heat.py").write_text(
        f"{TEST}    import time\n    time.sleep(60)\n"
    )
    copies = tmp_path / "copies"
    copies.mkdir()
    code = (
        "import sys; from pathlib import Path; from tests.mutants.__main__ import main; "
        f"sys.exit(main(['--out', {str(tmp_path)!r}], Path({str(tree)!r})))"
    )
    env = {**os.environ, "TMPDIR": str(copies)}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env) as tool:
        while not any(copies.glob("*/scratch/called")):
            assert tool.poll() is None
            time.sleep(0.05)
        tool.send_signal(signal.SIGTERM)
        assert tool.wait(60) == 128 + signal.SIGTERM
    assert list(copies.iterdir()) == []
    assert not [p for p in psutil.process_iter(["environ"]) if _works_in(p, copies)]


def _works_in(process: psutil.Process, folder: Path) -> bool:
    return (process.info["environ"] or {}).get("TMPDIR", "").startswith(str(folder))
