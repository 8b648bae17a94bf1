"""What `superv doctor` examines: this machine, Slurm, the trainer, and the way to a node.

Every probe is a child with a deadline; what does not answer is UNKNOWN. Nothing is changed, except
that --probe runs one small step on one node.
"""

from __future__ import annotations

from healthchecks.frame.report import Finding
from supervisor.config import Job, Site


async def examine(job: Job | None, site: Site, *, probe: bool) -> list[Finding]:
    """All findings, in the order in which a person would fix them."""
    import os

    from supervisor.doctor import cluster, logout, machine, node_probe, trainer
    from supervisor.doctor.finding import warn

    notes = (*(job.notes if job else ()), *site.notes)
    found = [warn("config", note, "write the new name") for note in notes]
    found += machine.packages()
    found += await machine.state(site, job)
    found += machine.places(site, job)
    found.append(logout.look(os.getuid()))
    found += machine.address(site, job)
    found += machine.ports(site)
    if job is not None:
        found += await trainer.look(job)
    if job is None or job.on_slurm:
        found += await cluster.look(job)
        found += await node_probe.look(job, site, probe=probe)
    return found
