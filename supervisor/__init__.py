"""superv keeps one large training job alive on Slurm."""

__version__ = "0.2.0.dev0"
