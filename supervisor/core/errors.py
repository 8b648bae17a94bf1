"""The errors that superv tells apart."""

from __future__ import annotations


class UserError(Exception):
    """The user can fix this: shown as one line, exit code 2.

    The text says what is wrong, where (file, key, node), what is valid and what to do next.
    """


class RefusalError(UserError):
    """A scheduler said no, and why: asked again for the same it says no again."""


class TooFewNodesError(RefusalError):
    """A scheduler has too few nodes for a request, in whatever state they are."""

    def __init__(self, text: str, *, lacking: int, excluded: tuple[str, ...]) -> None:
        """`lacking` nodes are missing; `excluded` are those that the request leaves out."""
        super().__init__(text)
        self.lacking, self.excluded = lacking, excluded


class TransientError(Exception):
    """The world did not answer properly (Slurm, storage, network): try again later."""
