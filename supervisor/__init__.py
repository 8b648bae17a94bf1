"""superv keeps one large training job alive on Slurm."""

__version__ = "0.1.0"
