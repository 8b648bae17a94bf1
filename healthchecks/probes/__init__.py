"""Programs and traffic of our own that a check sends out to measure something."""
