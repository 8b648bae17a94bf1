"""Health checks of nodes: what is looked at, how a probe may hang, and what its result means.

`check` says what a check is, `checks/` holds them, `runner` runs them, `report` is what comes out.
Nothing here changes a node.
"""
