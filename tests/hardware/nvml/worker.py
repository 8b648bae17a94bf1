"""`python -m tests.hardware.nvml.worker MODULE.py`: its `run` of each of its CASES, in a fork.

Reads {"case": NAME, "tmp": FOLDER} a line, and answers with {"error": TEXT} or {"seen": TEXT}.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from healthchecks.frame.registry import registered
from tests.hardware.nvml import SCRIPT
from tests.hardware.tree import borrowed


def answer(run: Any, case: Any, tmp: Path) -> dict[str, str]:
    try:
        return {"seen": run(case, tmp).seen}
    except AssertionError as error:
        return {"error": str(error) or traceback.format_exc()}
    except Exception:
        return {"error": traceback.format_exc()}


def main(module: Path) -> int:
    sys.path.insert(0, os.fspath(module.parent))
    asked_of = importlib.import_module(module.stem)
    cases = {str(case): case for case in asked_of.CASES}
    run = getattr(asked_of, "run", None) or importlib.import_module("checks").run
    for costly in ("pynvml", "msgspec"):  # once, and not in every fork
        importlib.import_module(costly)
    registered()
    with borrowed() as tree:
        os.environ["SUPERV_FAKE_NVML"] = os.fspath(tree.path(SCRIPT))
        for line in sys.stdin:
            asked = json.loads(line)
            out, into = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(out)
                try:
                    reply = answer(run, cases[asked["case"]], Path(asked["tmp"]))
                    os.write(into, json.dumps(reply).encode())
                finally:
                    os._exit(0)  # not the parent's exit handlers, which remove the tree
            os.close(into)
            with open(out, "rb") as pipe:
                text = pipe.read().decode()
            os.waitpid(pid, 0)
            print(text or json.dumps({"error": "the case's process ended without a word"}))
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
