"""How agents get onto nodes. A launcher is a module here and a line in the table LAUNCHERS."""

from __future__ import annotations

import importlib
from typing import Any

from supervisor.config import Job, Site
from supervisor.core.errors import UserError
from supervisor.core.ports import LAUNCHERS, Launcher


def load(name: str, **options: Any) -> Launcher:
    """The launcher of that name. Raises UserError on a name that is not in the table."""
    if name not in LAUNCHERS:
        raise UserError(f"launcher {name!r} is unknown; valid: {', '.join(sorted(LAUNCHERS))}")
    module, _, attribute = LAUNCHERS[name].partition(":")
    launcher: Launcher = getattr(importlib.import_module(module), attribute)(**options)
    return launcher


def launcher_of(job: Job, site: Site) -> Launcher:
    """The launcher that a job asks for. Raises UserError where the site lacks what it needs."""
    if job.torchx is None and job.launcher == "sbatch" and site.pyslurm_python:
        from launchers.pyslurm_client import PyslurmClient

        return load(job.launcher, slurm=PyslurmClient(site.pyslurm_python))
    if job.torchx is None:
        return load(job.launcher)
    if site.torchx_python is None:
        raise UserError(
            "site.yaml: torchx_python: missing, and launcher: torchx needs it: the interpreter of "
            "an environment with torchx 0.7 (docs/torchx.md)"
        )
    scheduler, args = job.torchx.scheduler, job.torchx.args
    return load(job.launcher, scheduler=scheduler, args=args, python=site.torchx_python)
