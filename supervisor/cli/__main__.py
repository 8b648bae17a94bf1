"""`python -m supervisor.cli` is `superv`."""

from supervisor.cli import main

main()
