"""Which variables hold secrets, and what is shown in their place."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

HIDDEN = "[hidden]"
MAX_BYTES = 65_536  # of one; Linux takes 128 KiB for a variable with its name
SHORTEST = 6  # a shorter one is not looked for in texts: "1" is in every other line

# Whole words between underscores, so that NCCL_IB_PKEY, MAX_TOKENS and TOKENIZERS_PARALLELISM stay.
_WORDS = frozenset(
    (
        *("KEY", "KEYS", "APIKEY", "TOKEN", "SECRET", "SECRETS", "PASS", "PWD", "PASSPHRASE"),
        *("AUTH", "AUTHORIZATION", "BEARER", "COOKIE", "CREDENTIAL", "CREDENTIALS", "SIGNATURE"),
        "DSN",
    )
)
_ENDS = ("PASSWORD", "PASSWD", "SECRET", "APIKEY", "TOKEN")  # also PGPASSWORD
_FREE = frozenset(("tail", "text", "why", "why_cold", "problems", "reason"))  # fields of events
_WITH_PASSWORD = re.compile(r"://[^/\s@]+@")  # a URL that says who one is


def looks_secret(name: str, value: str = "") -> bool:
    """Whether a variable's name, or a URL in its value, says that it is nobody else's business."""
    words = name.upper().split("_")
    by_name = any(word in _WORDS or word.endswith(_ENDS) for word in words)
    return (by_name and name not in ("PWD", "OLDPWD")) or bool(_WITH_PASSWORD.search(value))


def secret_values(env: Mapping[str, str], names: Collection[str] = ()) -> frozenset[str]:
    """The values of variables that are named as secrets, or look like some."""
    found = (v for n, v in env.items() if n in names or looks_secret(n, v))
    return frozenset(value for value in found if len(value) >= SHORTEST)


def without(secrets: Collection[str], text: str) -> str:
    """The text without the secrets."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, HIDDEN)
    return text


def masked(secrets: Collection[str], document: Any, *, free: bool = False) -> Any:
    """A document whose free texts hold no secret; names and keys stay, whatever they are like."""
    if isinstance(document, str):
        return without(secrets, document) if free else document
    if isinstance(document, Mapping):
        return {key: masked(secrets, value, free=key in _FREE) for key, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [masked(secrets, item, free=free) for item in document]
    return document
