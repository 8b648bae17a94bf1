"""Health checks of nodes. Nothing is here yet: `superv doctor` looks before a launch."""
