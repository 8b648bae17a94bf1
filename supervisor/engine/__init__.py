"""The engine's process: an event is folded, journaled, and what it calls for is done."""
