"""The health of nodes over weeks: the record, sweeps, drains, checks that Slurm runs."""
