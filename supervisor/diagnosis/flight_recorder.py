"""torch's flight recorder: which collective each rank had enqueued, and which it waits in.

A dump is JSON or a pickle of built-ins, one file a rank whose name ends with the rank
(TORCH_FR_DUMP_TEMP_FILE and the rank; `rank_3`, `nccl_trace_rank_3`). `pg_status` says for each
group what was enqueued and completed last, `entries` what each collective was; read of dumps that
torch 2.13 wrote (version 2.10 of the format), with gloo. Unfinished is what lies behind the last
completed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.checkpoints.metadata import BadError, built_ins

MAX_BYTES = 64 << 20  # of one dump
_RANK = re.compile(r"(?:rank_?|_)(\d{1,6})(?:\.json|\.pickle|\.pkl)?$")
_PICKLE = b"\x80"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedStanding:
    """Where a rank stands in one process group."""

    rank: int
    group: str
    enqueued: int
    completed: int
    waits_in: str = ""  # operation of the first that is not completed
    number: int = 0  # of that one

    def text(self) -> str:
        """In words."""
        where = f"of group {self.group}" if self.group else ""
        if self.waits_in:
            return (
                f"rank {self.rank} waits in {self.waits_in}, collective {self.number} {where}; "
                f"the last that it enqueued is {self.enqueued}"
            )
        return f"rank {self.rank} is in no collective {where}; it enqueued {self.enqueued} last"


def rank_of(path: str) -> int | None:
    """The rank that a dump's name says."""
    match = _RANK.search(Path(path).name)
    return int(match[1]) if match else None


def read(path: str, data: bytes) -> list[RecordedStanding] | None:
    """Read a dump; None where the bytes are none. Raises BadError where they are a broken one."""
    rank = rank_of(path)
    if rank is None or len(data) > MAX_BYTES:
        return None
    if data.startswith(_PICKLE):
        document = built_ins(data)
    elif data.lstrip()[:1] == b"{" and b'"entries"' in data and b'"pg_' in data:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BadError("not whole JSON") from error
    else:
        return None
    if not isinstance(document, dict) or not isinstance(document.get("entries"), list):
        return None
    return list(_standings(rank, document))


def _standings(rank: int, document: Mapping[Any, Any]) -> Iterator[RecordedStanding]:
    status = document.get("pg_status")
    groups = {str(key): one for key, one in status.items()} if isinstance(status, dict) else {}
    named: dict[str, str] = {}
    by_place: dict[tuple[str, int], str] = {}
    for entry in document["entries"]:
        if not isinstance(entry, dict):
            continue
        group = str(entry.get("pg_id", ""))
        process_group = entry.get("process_group")
        if isinstance(process_group, (list, tuple)) and len(process_group) > 1:
            named[group] = str(process_group[1] or process_group[0])
        if not entry.get("is_p2p"):
            by_place[group, _number(entry.get("collective_seq_id"))] = str(
                entry.get("profiling_name", "")
            )
    for group, one in groups.items():
        if not isinstance(one, dict):
            continue
        enqueued = _number(one.get("last_enqueued_collective"))
        completed = _number(one.get("last_completed_collective"))
        if enqueued < 0:
            continue
        waits = by_place.get((group, completed + 1), "") if completed < enqueued else ""
        yield RecordedStanding(
            rank=rank,
            group=named.get(group, group)[:80],
            enqueued=enqueued,
            completed=completed,
            waits_in=waits[:80],
            number=completed + 1 if waits else 0,
        )


def _number(value: object) -> int:
    text = str(value)
    return int(text) if re.fullmatch(r"-?\d{1,15}", text) else -1
