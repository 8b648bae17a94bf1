"""What a rank is told at its start: {placeholders} of its command line, and its environment."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from supervisor.core.actions import Start


@dataclass(frozen=True, slots=True, kw_only=True)
class Placeholder:
    """A word in braces that a user may write into arguments and variables."""

    doc: str
    value: Callable[[Start], object]


PLACEHOLDERS: Mapping[str, Placeholder] = {
    "node_rank": Placeholder(doc="the node's slot, from 0", value=lambda s: s.slot),
    "nnodes": Placeholder(doc="number of slots", value=lambda s: s.nnodes),
    "master_addr": Placeholder(doc="the address of slot 0's node", value=lambda s: s.master_addr),
    "master_port": Placeholder(
        doc="a port that is free there, another one for each attempt",
        value=lambda s: s.master_port,
    ),
    "save_dir": Placeholder(
        doc="the directory that this attempt saves into; it does not exist yet",
        value=lambda s: s.save_dir or "",
    ),
    "resume_path": Placeholder(
        doc="the verified checkpoint to load; empty when the attempt begins at step 0",
        value=lambda s: s.resume_path or "",
    ),
    "resume_step": Placeholder(
        doc="the step of that checkpoint; 0 when the attempt begins there",
        value=lambda s: s.resume_step or 0,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """One rank of an attempt, where it runs."""

    order: Start
    run_id: str
    run_name: str
    local_rank: int
    ranks_per_node: int
    error_file: str

    @property
    def rank(self) -> int:
        return self.order.slot * self.ranks_per_node + self.local_rank

    @property
    def world_size(self) -> int:
        return self.order.nnodes * self.ranks_per_node


# torchrun's contract with a rank: the names of torch 2.13,
# distributed/elastic/agent/server/local_elastic_agent.py
TORCHRUN: Mapping[str, Callable[[RankPlace], object]] = {
    "RANK": lambda p: p.rank,
    "LOCAL_RANK": lambda p: p.local_rank,
    "WORLD_SIZE": lambda p: p.world_size,
    "LOCAL_WORLD_SIZE": lambda p: p.ranks_per_node,
    "GROUP_RANK": lambda p: p.order.slot,
    "GROUP_WORLD_SIZE": lambda p: p.order.nnodes,
    "ROLE_RANK": lambda p: p.rank,
    "ROLE_WORLD_SIZE": lambda p: p.world_size,
    "ROLE_NAME": lambda p: "default",
    "MASTER_ADDR": lambda p: p.order.master_addr,
    "MASTER_PORT": lambda p: p.order.master_port,
    "TORCHELASTIC_RUN_ID": lambda p: p.run_id,
    "TORCHELASTIC_RESTART_COUNT": lambda p: p.order.attempt - 1,
    "TORCHELASTIC_MAX_RESTARTS": lambda p: p.order.attempt - 1,
    "TORCHELASTIC_USE_AGENT_STORE": lambda p: "False",
    "TORCHELASTIC_ERROR_FILE": lambda p: p.error_file,
}
SUPERV: Mapping[str, Callable[[RankPlace], object]] = {
    "SUPERV_RUN": lambda p: p.run_name,
    "SUPERV_ATTEMPT": lambda p: p.order.attempt,
    "SUPERV_SAVE_DIR": lambda p: p.order.save_dir or "",
    "SUPERV_RESUME_PATH": lambda p: p.order.resume_path or "",
    "SUPERV_RESUME_STEP": lambda p: p.order.resume_step or 0,
}
_RESERVED_PREFIXES = ("SUPERV_", "TORCHELASTIC_")


def reserved(name: str) -> bool:
    """Whether superv alone sets this variable, so that a user's value would have no effect."""
    return name in TORCHRUN or name.startswith(_RESERVED_PREFIXES)


def variables(place: RankPlace) -> dict[str, str]:
    """The environment variables that superv sets for a rank."""
    return {name: str(of(place)) for name, of in {**TORCHRUN, **SUPERV}.items()}


def placeholder_values(order: Start) -> dict[str, str]:
    """The values of {placeholders} in the trainer's command line and environment."""
    return {name: str(placeholder.value(order)) for name, placeholder in PLACEHOLDERS.items()}


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace the known placeholders; other braces are the trainer's own."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), text)
