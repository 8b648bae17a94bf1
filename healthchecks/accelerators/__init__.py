"""Accelerators, one file a maker behind one port: what is true of all of them."""
