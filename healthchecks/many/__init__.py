"""Health checks over many nodes: how they are asked, and how they compare."""
