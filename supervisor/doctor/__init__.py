"""What `superv doctor` examines: this machine, Slurm, the trainer, and the way to a node.

Every probe is a child with a deadline; what does not answer is UNKNOWN. Nothing is changed, except
that --probe runs one small step on one node.
"""

from __future__ import annotations

from collections.abc import Sequence

from healthchecks.frame.report import Finding
from supervisor.config import Job, Site
from supervisor.core.errors import UserError


async def examine(
    job: Job | None, site: Site, *, probe: bool, wrong: Sequence[UserError] = ()
) -> list[Finding]:
    """All findings, in the order in which a person would fix them.

    `wrong` is what could not be read of the job and the site: it is told, and the rest looked at.
    """
    import os

    from supervisor.doctor import (
        cluster,
        logout,
        machine,
        nccl_variables,
        node_probe,
        settings,
        torchx,
        trainer,
    )

    found = settings.look(job, site, wrong)
    found += machine.packages()
    found += await machine.state(site, job)
    found += machine.places(site, job)
    found.append(logout.look(os.getuid()))
    found += machine.address(site, job)
    found += machine.ports(site)
    if job is not None:
        found += await trainer.look(job)
        found += nccl_variables.look(job, unset=True)
    found += await torchx.look(job, site)
    if job is None or job.on_slurm:
        found += await cluster.look(job)
        if site.pyslurm_python:
            found.append(await cluster.reader(site.pyslurm_python))
        found += await node_probe.look(job, site, probe=probe)
    return found
