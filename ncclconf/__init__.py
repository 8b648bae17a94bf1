"""NCCL's environment: every variable that is known, and what is wrong in the one of a job or node.

variables.tsv is the catalogue, `catalogue` reads it. `environment` finds what a process would see
(its variables and NCCL's files), `lint` holds that against `rules`; what the rules need to know of
the machine is in `facts`.
"""
