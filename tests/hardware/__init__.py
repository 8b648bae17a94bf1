"""Fake hardware for tests: trees of /sys and /proc, libraries and programs at the real boundary."""
