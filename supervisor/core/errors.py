"""The errors that superv tells apart."""

from __future__ import annotations


class UserError(Exception):
    """The user can mend this: shown as one line, exit code 2.

    The text says what is wrong, where (file, key, node), what is valid and what to do next.
    """


class TransientError(Exception):
    """The world did not answer properly (Slurm, storage, network): try again later."""
