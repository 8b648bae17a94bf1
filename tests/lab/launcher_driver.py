"""Calls one method of the sbatch launcher, as the lab's user on a node of the lab.

Standard input: {"method", "args", "kwargs", "deadline_s"}; `submit` takes a LaunchSpec's fields.
With "torchx_python" it is the one that submits through TorchX, with "pyslurm_python" the one that
reads through pyslurm.
"script_path" may give another PATH for the batch script.
Standard output: {"result"} or {"error": [type, text]}.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import sys
from typing import Any

from launchers.pyslurm_client import PyslurmClient
from launchers.sbatch import SCRIPT_PATH, Sbatch
from launchers.slurm import Slurm
from launchers.torchx import TorchxSlurm
from supervisor.core.errors import TransientError, UserError
from supervisor.core.ports import LaunchSpec

FOLDER = "/tmp/sv-none"  # of jobs that are refused, or never start


async def call(order: dict[str, Any]) -> Any:
    path = order.get("script_path") or SCRIPT_PATH
    slurm = Slurm(deadline_s=order["deadline_s"])
    if python := order.get("pyslurm_python"):
        slurm = PyslurmClient(python, deadline_s=order["deadline_s"])
    if python := order.get("torchx_python"):
        sbatch: Sbatch = TorchxSlurm(python=python, slurm=slurm)
    else:
        sbatch = Sbatch(slurm=slurm, path=path)
    if order["method"] == "submit":
        return await sbatch.submit(sbatch.plan(LaunchSpec(**{"folder": FOLDER, **order["kwargs"]})))
    if order["method"] == "send_file":
        job, content, path = order["args"]
        return await sbatch.send_file(job, base64.b64decode(content), path)
    asked = slurm if order["method"] == "cluster" else sbatch
    return await getattr(asked, order["method"])(*order["args"])


def plain(value: Any) -> Any:
    return dataclasses.asdict(value)


if __name__ == "__main__":
    try:
        answer = {"result": asyncio.run(call(json.load(sys.stdin)))}
    except TransientError as error:
        answer = {"error": [TransientError.__name__, str(error)]}  # AwayError is one
    except UserError as error:
        answer = {"error": [type(error).__name__, str(error)]}
    json.dump(answer, sys.stdout, default=plain)
