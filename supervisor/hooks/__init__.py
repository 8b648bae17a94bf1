"""Adapters to trainers, one file each: the flags superv adds, and the hook inside the ranks."""

NAMES = ("torchtitan",)
