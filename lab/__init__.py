"""A real Slurm cluster on one machine, in namespaces, with faults to order. See docs/lab.md.

`lab.cluster.Lab` is the way in.
"""
