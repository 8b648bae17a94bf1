"""Adapters to trainers, one file each: what superv adds to the command line of a rank."""
