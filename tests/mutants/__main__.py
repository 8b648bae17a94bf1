"""`python -m tests.mutants [FILE…]`: break the checks in small ways, and say what no test noticed.

    python -m tests.mutants                                # all of healthchecks/checks and /sources
    python -m tests.mutants --sample 200 --seed 7          # some of them
    python -m tests.mutants --share 1/2 & python -m tests.mutants --share 2/2
    python -m tests.mutants healthchecks/checks/nic.py --out /tmp/nic

Thresholds, comparisons, needles and statuses are changed one at a time, in a copy of the tree. In
the folder of --out: survivors.txt, a line for each that no test noticed (FILE:LINE: what), and
trials.jsonl, a line for each that was tried, with the first test that turned red; its first line
names tests that fail where nothing is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.mutants.mutations import mutants

ROOT = Path(__file__).parents[2]
FILES = ("healthchecks/checks/*.py", "healthchecks/sources/*.py")
TESTS = (
    "tests/contract/test_checks_*.py",
    "tests/contract/test_healthy_but_different.py",
    "tests/contract/test_sick_in_other_words.py",
    "tests/contract/test_cohort_of_trees.py",
    "tests/unit/test_cohort.py",
    "tests/unit/test_forged_lines.py",
    "tests/unit/test_kernel_log.py",
    "tests/unit/test_mounts.py",
    "tests/unit/test_storage_width.py",
    "tests/unit/test_what_drains.py",
    "tests/unit/test_xid.py",
)


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    """0 where every mutant was noticed, or no more than --survivors survived; 1 otherwise."""
    ask = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    ask.formatter_class = argparse.RawDescriptionHelpFormatter
    ask.add_argument("files", nargs="*", metavar="FILE")
    ask.add_argument("--sample", type=int, metavar="N", help="that many of them, chosen by --seed")
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--share", default="1/1", metavar="I/N", help="one of N parts of the work")
    ask.add_argument("--out", type=Path, default=Path("mutants"), help="a folder; ./mutants")
    ask.add_argument(
        "--survivors", type=int, default=0, metavar="N", help="how many are no failure"
    )
    given = ask.parse_args(arguments)
    chosen = _chosen(root, given)
    given.out.mkdir(parents=True, exist_ok=True)
    log = (given.out / "trials.jsonl").resolve()
    log.write_text("")
    code = _try(root, chosen, log)
    first, *rows = [json.loads(line) for line in log.read_text().splitlines()] or [{"unfit": []}]
    for test in first["unfit"]:
        print(f"fails though nothing is broken, so it was left out: {test}")
    alive = [row for row in rows if not row["red"]]
    (given.out / "survivors.txt").write_text("".join(f"{row['mutant']}\n" for row in alive))
    _summary(rows, alive, given.out)
    wanted = sum(map(len, chosen.values()))
    if len(rows) < wanted:
        print(f"only {len(rows)} of {wanted} were tried: pytest ended with {code}, see above")
        return 2
    return 0 if len(alive) <= given.survivors else 1


def _chosen(root: Path, given: argparse.Namespace) -> dict[str, list[int]]:
    """Numbers of mutants by file."""
    files = [os.fspath(Path(file).resolve().relative_to(root.resolve())) for file in given.files]
    files = files or sorted(os.fspath(p.relative_to(root)) for g in FILES for p in root.glob(g))
    every = [
        (file, number)
        for file in files
        for number, _ in enumerate(mutants(file, (root / file).read_text()))
    ]
    if given.sample is not None:
        chance = random.Random(given.seed)
        every = sorted(chance.sample(every, min(given.sample, len(every))))
    part, of = map(int, given.share.split("/"))
    found: dict[str, list[int]] = {}
    for file, number in every[part - 1 :: of]:
        found.setdefault(file, []).append(number)
    return found


def _try(root: Path, chosen: dict[str, list[int]], log: Path) -> int:
    """In a copy of the tree, which is gone afterwards, however this ends."""
    ends = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda n, _frame: sys.exit(128 + n)) for number in ends]
    place = Path(tempfile.mkdtemp(prefix="superv-mutants-"))
    place.chmod(0o755)  # tests become other users
    tests: subprocess.Popen[bytes] | None = None
    try:
        tree = place / "tree"
        for name in ("healthchecks", "supervisor", "launchers", "lab", "tests", "pyproject.toml"):
            _copy(root / name, tree / name)
        scratch = place / "scratch"
        scratch.mkdir()
        order = {"mutants": chosen, "log": os.fspath(log), "scratch": os.fspath(scratch)}
        (place / "order.json").write_text(json.dumps(order))
        found = sorted(os.fspath(p.relative_to(tree)) for g in TESTS for p in tree.glob(g))
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        argv += ["-p", "no:xdist", "-p", "tests.mutants.trials", "-o", "addopts="]
        argv += ["--basetemp", os.fspath(scratch / "base"), *found]
        paths = os.pathsep.join([os.fspath(tree), os.fspath(ROOT)])  # the second has this plugin
        env = {**os.environ, "PYTHONPATH": paths, "TMPDIR": os.fspath(scratch)}
        env["SUPERV_MUTANTS"] = os.fspath(place / "order.json")
        tests = subprocess.Popen(argv, cwd=tree, env=env, start_new_session=True)
        return tests.wait()
    finally:
        if tests is not None and tests.poll() is None:
            tests.terminate()  # it ends what it started
            with suppress(subprocess.TimeoutExpired):
                tests.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(tests.pid, signal.SIGKILL)
            tests.wait()
        shutil.rmtree(place, ignore_errors=True)
        for number, handler in zip(ends, before, strict=True):
            signal.signal(number, handler)


def _copy(what: Path, to: Path) -> None:
    if what.is_dir():
        shutil.copytree(what, to, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    elif what.exists():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(what, to)


def _summary(rows: list[dict[str, Any]], alive: list[dict[str, Any]], out: Path) -> None:
    tried = Counter(row["mutant"].partition(":")[0] for row in rows)
    left = Counter(row["mutant"].partition(":")[0] for row in alive)
    for file, number in sorted(tried.items(), key=lambda x: (-left[x[0]], x[0])):
        print(f"{left[file]:5} of {number:4} survived  {file}")
    print(f"{len(alive)} of {len(rows)} survived; they are in {out / 'survivors.txt'}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
