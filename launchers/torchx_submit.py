"""Hands one app to a scheduler of TorchX: a program of its own, run by torchx's own interpreter.

    python -I torchx_submit.py SCHEDULER [--arg=NAME=VALUE ...] [--job=ID] -- WORD...

The script of the app comes on standard input, the app's id goes to standard output. WORDs are
sbatch's options with `slurm`, and the names of the nodes with `local_cwd`. What TorchX's own
programs say goes to standard error; exit code 78 means that superv has no use for this torchx.

Standard library and torchx only: superv is not installed where this runs.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

UNFIT = 78  # EX_CONFIG
FOLDER = "SUPERV_NODE_FOLDER"
# TorchX's local scheduler ends what it started when its object goes away, so it never does.
_kept: list[object] = []

# The one step of the app's batch script: superv's own script, once. That starts agents on all of
# the job's nodes, and outlives them; none of srun's other habits is wanted.
STEP = {
    "nodes": "1",
    "ntasks": "1",
    "job-name": "superv-torchx",
    "overlap": None,
    "no-kill": None,
    "kill-on-bad-exit": "0",
    "wait": "0",
    "cpu-bind": "none",
    "mem": "0",
    "mpi": "none",
    "propagate": "NONE",
    "export": "ALL",
    "input": "none",
    "output": "/dev/null",
    "error": "/dev/null",
}


def literal(text: str) -> str:
    """The text as TorchX leaves it: it substitutes ${names} in the arguments of a role."""
    return text.replace("$", "$$")


def scheduler_of(name: str) -> Any:
    """TorchX's scheduler of that name; what others registered does not hide TorchX's own."""
    import importlib

    from torchx.schedulers import DEFAULT_SCHEDULER_MODULES, get_scheduler_factories

    known = get_scheduler_factories()
    if name in known:
        return known[name]("superv")
    return importlib.import_module(DEFAULT_SCHEDULER_MODULES[name]).create_scheduler("superv")


def config_of(scheduler: Any, given: list[str]) -> dict[str, Any]:
    """The scheduler's run options from NAME=VALUE. Raises ValueError for what it does not know."""
    options = dict(scheduler.run_opts())
    config: dict[str, Any] = {}
    for name, _, value in (one.partition("=") for one in given):
        if name not in options:
            valid = ", ".join(sorted(options))
            raise ValueError(f"args: {name}: this scheduler has no such option; valid: {valid}")
        kind = options[name].opt_type
        config[name] = value.lower() in ("true", "yes", "1") if kind is bool else kind(value)
    return config


def app(entrypoint: str, args: list[str], replicas: int) -> Any:
    from torchx.specs import AppDef, Role

    role = Role(
        name="agent",
        image="/",
        entrypoint=entrypoint,
        args=args,
        num_replicas=replicas,
        max_retries=0,  # superv asks for nodes again by itself
    )
    return AppDef(name="superv", roles=[role])


def on_slurm(scheduler: Any, config: dict[str, Any], script: str, options: list[str]) -> str:
    """One job of all nodes, not one component for each: such a job ends when a node dies."""
    wanted = app("bash", ["-c", literal(script), "superv-allocation"], 1)
    info = scheduler.submit_dryrun(wanted, config)
    request = info.request
    (replica,) = request.replicas.values()
    replica.name = "superv"
    replica.sbatch_opts, replica.srun_opts = {}, dict(STEP)
    request.cmd = ["sbatch", "--parsable", *options]  # not in the script, where nothing quotes them
    return str(scheduler.schedule(info))


def on_this_machine(
    scheduler: Any, config: dict[str, Any], script: str, job: str, nodes: list[str]
) -> str:
    """A replica for each node. They know their job by the environment, which they inherit."""
    os.environ["SLURM_JOB_ID"] = job
    config["log_dir"] = str(Path(os.environ[FOLDER]) / "torchx")
    args = ["-c", literal(script), "superv-replica", "${replica_id}", *map(literal, nodes)]
    scheduler.schedule(scheduler.submit_dryrun(app("sh", args, len(nodes)), config))
    return job


def submit(argv: list[str], script: str) -> str:
    """Raises what TorchX raises, CalledProcessError of sbatch among it."""
    name, *words = argv
    end = words.index("--")
    given, rest = words[:end], words[end + 1 :]
    scheduler = scheduler_of(name)
    _kept.append(scheduler)
    args = [one.removeprefix("--arg=") for one in given if one.startswith("--arg=")]
    config = config_of(scheduler, args)
    if name == "slurm":
        return on_slurm(scheduler, config, script, rest)
    (job,) = (one.removeprefix("--job=") for one in given if one.startswith("--job="))
    return on_this_machine(scheduler, config, script, job, rest)


def main() -> int:
    logging.disable(logging.CRITICAL)
    try:
        import torchx.schedulers  # noqa: F401
    except ImportError as error:
        print(f"torchx_python: {sys.executable}: {error}", file=sys.stderr)  # noqa: T201
        return UNFIT
    try:
        app_id = submit(sys.argv[1:], sys.stdin.read())
    except Exception as error:
        code = getattr(error, "returncode", None)  # of a program of Slurm's, which said why itself
        if isinstance(code, int):
            return code if 0 < code < 126 else 1
        print(f"torchx: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return UNFIT
    print(app_id, flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # and no object with it
