"""A run on the engine's machine: its folder, its journal, the copy of its code."""
