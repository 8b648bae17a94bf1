"""Numbers on the command line: one way to say which are valid, and nan is none of them."""

from __future__ import annotations

import math
from typing import Any

import click

from supervisor.core.errors import UserError


class Number(click.ParamType[float]):
    """A number from `least` to `most` (None: no bound), whole or not, in `unit` (a plural).

    What is no such number is refused with a UserError: option, value, what is valid.
    """

    name = "number"

    def __init__(
        self, least: float, most: float | None, unit: str = "", *, whole: bool = False
    ) -> None:
        self.least, self.most, self.unit, self.whole = least, most, unit, whole

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """SECONDS, or N; an argument goes by its own name."""
        return (self.unit.upper() or "N") if isinstance(param, click.Option) else None

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | int:
        """The number. Raises UserError."""
        try:
            number = int(value) if self.whole else float(value)
        except ValueError:
            number = math.nan
        if number >= self.least and (self.most is None or number <= self.most):
            return number  # nan compares false
        raise UserError(f"{_called(param)}{value}: expected {self.valid()}")

    def valid(self) -> str:
        """The range in words."""
        kind = "a whole number," if self.whole and not self.unit else ""
        end = "or more" if self.most is None else f"to {self.most:.15g}"
        return " ".join(word for word in (kind, f"{self.least:.15g} {end}", self.unit) if word)


def _called(param: click.Parameter | None) -> str:
    if param is None:
        return ""
    return f"{param.opts[-1] if isinstance(param, click.Option) else param.human_readable_name} "
