"""Say what an environment with TorchTitan will cost, before it is fetched: `python look_first.py`.

Run with the environment's own Python. Exits with 2 where the package index would give a machine
without a GPU the CUDA build of torch: several GB of packages that nothing here could use.
"""

from __future__ import annotations

import glob
import json
import subprocess
import sys
from typing import Any

TORCH = "torch==2.13.0"
# Measured on 2 cores with a package index beside it, November 2026: 1.5 GB, 75 s.
COST = "1.5 GB on disk, a minute or two where the index is near"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def offered() -> dict[str, Any]:
    """What the index would install for torch, as pip reports it (`pip install --report`)."""
    options = ("-q", "--disable-pip-version-check", "--dry-run", "--ignore-installed", "--no-deps")
    argv = [sys.executable, "-m", "pip", "install", *options, "--report", "-", TORCH]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)["install"][0]


def cuda_packages(found: dict[str, Any]) -> list[str]:
    """The CUDA packages that it depends on, by name."""
    needed = found["metadata"].get("requires_dist", [])
    names = {words.replace(";", " ").split()[0].split("=")[0].split("[")[0] for words in needed}
    return sorted(name for name in names if name.startswith(("nvidia-", "cuda-")))


def main() -> int:
    print(f"making an environment with TorchTitan: {COST}", flush=True)
    names = cuda_packages(offered())
    if names and not glob.glob("/dev/nvidia[0-9]*"):
        print(
            f"superv: the package index would give {TORCH} with {len(names)} CUDA packages (such "
            f"as {names[0]}), several GB, and this machine has no GPU; nothing was fetched. Name "
            f"an index with its CPU build and run make again: PIP_EXTRA_INDEX_URL={CPU_INDEX}",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
