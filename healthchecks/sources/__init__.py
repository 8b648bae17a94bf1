"""What a node shows: devices, ports, mounts, kernel log; read once for several checks."""
