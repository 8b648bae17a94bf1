"""job.yaml and site.yaml → frozen types. Unknown keys are errors that list the valid ones.

Reads files; decides nothing and changes nothing. docs/configuration.md is made from these types.
"""

from supervisor.config.job import Checkpoints, Job, load_job, look_at_job, parse_job
from supervisor.config.site import DrainRule, PortRange, Site, Ssh, load_site, look_at_site
from supervisor.config.trainer import ProgressPatterns, Trainer

__all__ = [
    "Checkpoints",
    "DrainRule",
    "Job",
    "PortRange",
    "ProgressPatterns",
    "Site",
    "Ssh",
    "Trainer",
    "load_job",
    "load_site",
    "look_at_job",
    "look_at_site",
    "parse_job",
]
