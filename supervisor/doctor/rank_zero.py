"""The trainer's interpreter as rank 0 would have it: its environment, and what it says."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

from supervisor import proc
from supervisor.config import Job
from supervisor.core.actions import Start
from supervisor.core.rank_contract import RankPlace, variables

READ_S = 5.0


def environment(job: Job) -> dict[str, str]:
    """The variables that a rank's interpreter starts with: wrappers bind by LOCAL_RANK."""
    order = Start(
        key="start",
        node="",
        attempt=1,
        slot=0,
        nnodes=job.nodes,
        master_addr="127.0.0.1",
        master_port=29500,
        save_dir=None,
        resume_path=None,
        resume_step=None,
    )
    place = RankPlace(
        order=order,
        run_id=job.name,
        run_name=job.name,
        local_rank=0,
        ranks_per_node=job.trainer.ranks_per_node,
        error_file="/dev/null",
    )
    own = {name: value for name, value in job.trainer.env.items() if "{" not in value}
    return {**os.environ, **own, **variables(place)}


def which(job: Job, program: str) -> str | None:
    """Where a rank finds a program by its name: PATH may be one of trainer.env."""
    return shutil.which(program, path=environment(job).get("PATH"))


def told(out: str) -> dict[str, Any]:
    """The last line that is a JSON object: wrappers speak before and after. Empty: none is."""
    for line in reversed(out.splitlines()):
        if line.startswith("{"):
            try:
                return dict(json.loads(line))
            except (ValueError, TypeError):
                continue
    return {}


async def wraps(job: Job) -> bool:
    """Whether the interpreter is a script, which may do otherwise on a node than here."""
    program = job.trainer.python
    path = program if "/" in program else which(job, program) or program
    cwd = str(job.trainer.workdir)
    done = await proc.run(("head", "-c", "2", "--", path), deadline_s=READ_S, cwd=cwd)
    return done.out == "#!"
