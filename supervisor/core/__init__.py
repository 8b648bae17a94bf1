"""Pure decisions: no clock, file, process or socket. Time arrives in events."""
