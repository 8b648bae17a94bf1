"""Answers questions about Slurm with pyslurm, one at a time: the child of launchers.pyslurm_client.

Runs in an interpreter of the site's with pyslurm in it, which superv neither brings nor imports
anywhere else; kept to the standard library besides. Usage: pyslurm_child.py FD, a stream socket.
A line of JSON in, {"ask": jobs|nodes|partitions|version}, and one out, {"rows"} or {"error"}.
It ends with its caller. A call to slurmctld takes no deadline: whoever asks has one.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any


def _jobs(pyslurm: Any) -> list[list[Any]]:
    """[id, state, reason, nodes, name, uid] of all jobs that slurmctld remembers."""
    return [
        [_id(j), j.state, j.state_reason, j.allocated_nodes, j.name, j.user_id]
        for j in pyslurm.Jobs.load().values()
    ]


def _id(job: Any) -> str:
    """As squeue writes it: tasks of an array by their array's number."""
    if job.array_id and job.array_task_id is not None:
        return f"{job.array_id}_{job.array_task_id}"
    return str(job.id)


def _nodes(pyslurm: Any) -> list[list[Any]]:
    """[name, complete state, partitions, gres, idle CPUs, reason], the default partition first."""
    default = {p.name for p in pyslurm.Partitions.load().values() if p.is_default}
    return [
        [
            *(n.name, n.state, sorted(n.partitions or (), key=lambda name: name not in default)),
            *([f"{kind}:{count}" for kind, count in (n.configured_gres or {}).items()],),
            *(n.idle_cpus, n.reason),
        ]
        for n in pyslurm.Nodes.load().values()
    ]


def _partitions(pyslurm: Any) -> list[list[Any]]:
    return [[p.name, p.is_default, p.nodes] for p in pyslurm.Partitions.load().values()]


def _version(pyslurm: Any) -> list[list[Any]]:
    return [[pyslurm.__version__]]


ANSWERS = {"jobs": _jobs, "nodes": _nodes, "partitions": _partitions, "version": _version}


def main(fd: int) -> None:
    stream = socket.socket(fileno=fd).makefile("rw", encoding="utf-8", newline="\n")
    for line in stream:
        try:
            import pyslurm  # type: ignore[import-not-found,unused-ignore]

            answer: dict[str, Any] = {"rows": ANSWERS[json.loads(line)["ask"]](pyslurm)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        stream.write(json.dumps(answer) + "\n")
        stream.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
