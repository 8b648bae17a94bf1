"""The machine that a part of superv runs on: /proc, addresses, shortages, its log, a terminal."""
