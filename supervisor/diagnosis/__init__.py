"""Logs of a job that failed, whoever ran it → sightings. Files are read here; the core judges."""
