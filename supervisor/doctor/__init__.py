"""What `superv doctor` examines: this machine, Slurm, the trainer, and the way to a node.

Every probe is a child with a deadline; what does not answer is UNKNOWN. Nothing is changed, except
that --probe runs one small step on one node.
"""

from __future__ import annotations

from supervisor.config import Job, Site
from supervisor.doctor.finding import Finding


async def examine(job: Job | None, site: Site, *, probe: bool) -> list[Finding]:
    """All findings, in the order in which a person would mend them."""
    from supervisor.doctor import cluster, machine, node_probe, trainer

    found = machine.packages()
    found += await machine.state(site, job)
    found += machine.address(site, job)
    found += machine.ports(site)
    if job is not None:
        found += await trainer.look(job)
    if job is None or job.launcher == "sbatch":
        found += await cluster.look(job)
        found += await node_probe.look(job, site, probe=probe)
    return found
