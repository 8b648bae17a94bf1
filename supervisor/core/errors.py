"""The errors that superv tells apart."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """The user can fix this: shown as one line, exit code 2.

    The text says what is wrong, where (file, key, node), what is valid and what to do next.
    """


class SeveralError(UserError):
    """Several mistakes at once. Its text is the first one's, and where all are told."""

    def __init__(self, each: Sequence[UserError], see: str = "superv doctor") -> None:
        """Each of those that are several is taken apart; `see` is a command that tells all."""
        self.each: tuple[UserError, ...] = tuple(one for e in each for one in told(e))
        more = len(self.each) - 1
        rest = f"; {more} more mistake{'s' * (more > 1)}: `{see}` tells all" if more else ""
        super().__init__(f"{self.each[0]}{rest}")


def told(error: UserError) -> tuple[UserError, ...]:
    """The mistakes that an error tells: itself, where it is not several."""
    return error.each if isinstance(error, SeveralError) else (error,)


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
