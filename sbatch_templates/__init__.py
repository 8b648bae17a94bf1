"""The shell scripts that superv gives to Slurm, as templates that quote.

Whatever a template prints is quoted for the shell: a value can't end up unquoted because somebody
forgot a filter. `| sh` quotes a list into several words.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence

import jinja2


class _Quoted(str):
    """Text that is already quoted for the shell."""

    __slots__ = ()


def quote(value: str | int | Sequence[str]) -> str:
    """Quote one value as one shell word, or a sequence as several.

    Raises ValueError on a NUL character, which no argument can carry, and TypeError on anything
    that is not text or a number.
    """
    if isinstance(value, _Quoted):
        return value
    if isinstance(value, jinja2.Undefined):
        str(value)  # raises UndefinedError, which says the name
    if isinstance(value, (list, tuple)):
        return _Quoted(" ".join(quote(word) for word in value))
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise TypeError(f"a template printed {value!r}, which is neither text nor a number")
    if "\0" in str(value):
        raise ValueError(f"{value!r}: no argument can carry a NUL character")
    return _Quoted(shlex.quote(str(value)))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(  # noqa: S701 (shell, not HTML: quoted by finalize)
        loader=jinja2.PackageLoader("sbatch_templates", "."),
        undefined=jinja2.StrictUndefined,
        finalize=quote,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sh"] = quote
    return environment


def render(template: str, **values: str | int | Sequence[str]) -> str:
    """Render a template of this package, e.g. `allocation.sh`; every value comes out quoted.

    Raises jinja2.UndefinedError where the template names a value that is not given.
    """
    return _environment().get_template(f"{template}.j2").render(**values)
