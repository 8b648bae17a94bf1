"""Ten thousand inputs that nobody meant, for each reader of files; endless in `make soak`.

The same inputs each time (fuzzing.py); soak takes others, for SUPERV_FUZZ_S seconds a reader
(default 120; 0 is until it is stopped), and names the first number.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

FUZZING = Path(__file__).with_name("fuzzing.py")
KINDS = ("journal", "metadata", "archive", "wire", "job", "site")
COUNT = 2_500  # in one process: four of a kind share the cores


def fuzz(kind: str, first: int, count: int, *keep: Path) -> dict[str, int]:
    words = [sys.executable, FUZZING, kind, str(first), str(count), *keep]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{kind} from {first}:\n{done.stderr[-2000:]}"
    seen: dict[str, int] = json.loads(done.stdout)
    assert sum(seen.values()) == count
    return seen


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_inputs_give_an_answer_in_one_line(kind: str, part: int) -> None:
    seen = fuzz(kind, part * COUNT, COUNT)
    assert len(seen) > 1, f"{seen}: some are read, some are not"


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_without_end(kind: str) -> None:
    for_s = float(os.environ.get("SUPERV_FUZZ_S", "120"))
    end, first = time.monotonic() + for_s, time.time_ns()
    print(f"{kind}: from {first}")
    while time.monotonic() < end or not for_s:
        fuzz(kind, first, 10_000)
        first += 10_000


@pytest.mark.titan
@pytest.mark.skipif(not os.environ.get("SUPERV_TITAN"), reason="needs torch: SUPERV_TITAN")
def test_metadata_that_is_called_good_torch_loads(tmp_path: Path) -> None:
    fuzz("metadata", 1_000_000, 15_000, tmp_path)
    good = sorted(tmp_path.iterdir())
    assert len(good) > 20
    data = FUZZING.parents[1] / "data"
    words = [os.environ["SUPERV_TITAN"], data / "torch_loads.py", data / "dcp" / "step-5", *good]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    names = [path.name for path in good]
    assert [line.split(" ", 1) for line in done.stdout.splitlines()] == [[n, ""] for n in names]
