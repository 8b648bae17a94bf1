"""site.yaml: what belongs to the cluster, not to one job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from supervisor.config.document import (
    At,
    YamlMapping,
    YamlNode,
    YamlScalar,
    parse,
    quoted,
    read_text,
    shown,
)
from supervisor.config.groups import VALID as VALID_GROUPS
from supervisor.config.groups import NodeGroup, read_groups
from supervisor.config.notify import NotifyTarget
from supervisor.config.own_checks import VALID, OwnCheck, read_own_checks
from supervisor.config.schema import WrongKeys, keys, read_fields, read_rest, read_value
from supervisor.core.errors import SeveralError, UserError
from supervisor.core.setting import about
from supervisor.host import announced, trusted

SYSTEM_FILE = Path("/etc/superv/site.yaml")
_PORTS = "a range of ports from 1024 to 65535, as 20000-29999"
# Not /tmp: that is emptied first, and often lies in memory. Agents make folders of mode 0700 there.
NODE_DIR = Path("/var/tmp")  # noqa: S108
_ELSEWHERE = "XDG_CONFIG_HOME to a folder on local disk"
_FEWEST = 16  # each attempt takes another port, so that older ranks meet nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRange:
    """TCP ports, both ends included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def read_ports(node: YamlNode, at: At) -> PortRange:
    """Raises UserError."""
    text = node.text if isinstance(node, YamlScalar) else ""
    first, dash, last = (part.strip() for part in text.partition("-"))
    digits = all(p.isascii() and p.isdigit() and len(p) <= 5 for p in (first, last))
    if not (dash and digits and 1024 <= int(first) <= int(last) <= 65535):
        raise at.error(f"expected {_PORTS}, got {shown(node)}")
    if int(last) - int(first) + 1 < _FEWEST:
        raise at.error(f"expected at least {_FEWEST} ports, got {quoted(text)}")
    return PortRange(first=int(first), last=int(last))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ssh:
    """How nodes are entered that Slurm can't use."""

    user: str | None = field(
        default=None,
        metadata=about(
            "Who to log in as.",
            pattern=r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}",
            valid="a user's name",
            default="yourself",
        ),
    )
    key_file: Path | None = field(
        default=None,
        metadata=about("A private key without passphrase.", default="ssh-agent, then ~/.ssh/id_*"),
    )
    port: int = field(default=22, metadata=about("Of sshd on the nodes.", ge=1, le=65535))
    connect_timeout_s: float = field(
        default=5.0,
        metadata=about(
            "A node that has not let in within this time does not answer.",
            unit="s",
            ge=0.5,
            le=120,
        ),
    )
    max_connections: int = field(
        default=16, metadata=about("Connections open at the same time.", ge=1, le=256)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRoles:
    """What RDMA ports are for, where health checks would guess wrong.

    Each names ports by device, PCI address or board (board_id), with * and ? and [0-7].
    """

    fabric: tuple[str, ...] = field(
        default=(), metadata=about("Carry the job between nodes; must be active.")
    )
    storage: tuple[str, ...] = field(default=(), metadata=about("Carry data; must be active."))
    management: tuple[str, ...] = field(
        default=(), metadata=about("Carry neither: not compared with the others.")
    )
    ignore: tuple[str, ...] = field(default=(), metadata=about("Not looked at."))

    def patterns(self) -> dict[str, list[str]]:
        """By role, as JSON could carry it to another node."""
        return {f.name: list(getattr(self, f.name)) for f in fields(self) if getattr(self, f.name)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRule:
    """When a node is drained, and how many may be at once. `drain: on` alone has the rest as it is.

    5 % and 2 nodes: three nodes at once are a shared cause, as in the engine's own rule.
    """

    mode: str = field(
        default="off",
        metadata=about(
            "off: superv drains nothing, lifts nothing, and fails no Prolog.",
            choices=("off", "on"),
        ),
    )
    max_percent: float = field(
        default=5.0,
        metadata=about(
            "Of the cluster's nodes, drained by superv at the same time: more is a shared cause, "
            "and nobody is drained until fewer are.",
            unit="%",
            ge=0,
            le=100,
        ),
    )
    max_nodes: int = field(
        default=2,
        metadata=about("That many may be drained in a small cluster too.", ge=0, le=100_000),
    )
    look_again_s: float = field(
        default=60.0,
        metadata=about(
            "What a look found counts once another has found it so much later.",
            unit="s",
            ge=0,
            le=3600,
        ),
    )

    @property
    def on(self) -> bool:
        return self.mode == "on"


def read_drain(node: YamlNode, at: At) -> DrainRule:
    """`on`, `off`, or a mapping. Raises UserError."""
    if isinstance(node, YamlMapping):
        return DrainRule(**read_fields(DrainRule, node, at))
    return DrainRule(mode=read_value(keys(DrainRule)["mode"], node, at))


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The merged site files."""

    state_dir: Path = field(
        metadata=about(
            "Journals and keys of the runs, on the local disk of the machine that the engine "
            "runs on.",
            default="$XDG_STATE_HOME/superv, else ~/.local/state/superv",
        )
    )
    node_dir: Path = field(
        default=NODE_DIR,
        metadata=about("On every node's local disk: the agent's files and the ranks' output."),
    )
    engine_address: str | None = field(
        default=None,
        metadata=about(
            "Where the agents reach the engine: an address, a host name, or one of the engine's "
            "network interfaces.",
            pattern=r"[A-Za-z0-9][A-Za-z0-9._:%-]{0,252}|::[0-9a-f:]*",
            valid="an address, a host name or an interface",
            default="the engine's host name",
        ),
    )
    engine_ports: PortRange = field(
        default=PortRange(first=20000, last=29999),
        metadata=about(
            "The engine listens on a free one of these; outside the kernel's ephemeral range.",
            valid=_PORTS,
            read=read_ports,
        ),
    )
    rank_ports: PortRange = field(
        default=PortRange(first=30000, last=32000),
        metadata=about(
            "MASTER_PORT of each attempt; outside the kernel's ephemeral range.",
            valid=_PORTS,
            read=read_ports,
        ),
    )
    fleet_file: Path | None = field(
        default=None,
        metadata=about(
            "The fleet record: what health checks found on every node, and exclusions. On local "
            "disk; let the users who launch runs read it, and cron write it.",
            default="fleet.db in state_dir",
        ),
    )
    claims_dir: Path | None = field(
        default=None,
        metadata=about(
            "Where users who may not write the fleet record, and their runs, tell whom they keep "
            "out: a folder of root's that all may write to (mode 1777), seen by all machines "
            "where superv is called. `superv nodes` shows it to everybody.",
            default="none",
        ),
    )
    drain: DrainRule = field(
        default=DrainRule(),
        metadata=about(
            "Whether nodes that fail are drained in Slurm, by `superv sweep` and by what Slurm "
            "runs (docs/slurm.md), and how many at once.",
            default="off",
            valid="off, on, or a mapping of mode, max_percent, max_nodes, look_again_s",
            read=lambda node, at: read_drain(node, at),
        ),
    )
    checks: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict,
        metadata=about(
            "Settings of health checks, by check; docs/checks/ has them all. Each has `enabled` "
            "(false: it is not run) and `ignore` (targets and devices that are not judged) too.",
            valid="a mapping of checks to their settings",
            read=lambda node, at: read_settings(node, at),
        ),
    )
    groups: tuple[NodeGroup, ...] = field(
        default=(),
        metadata=about(
            "Nodes whose checks are set otherwise, over `checks`; of several the last one holds. "
            "A partition counts where Slurm tells it: in jobs, srun and Prologs.",
            valid=VALID_GROUPS,
            read=read_groups,
        ),
    )
    own_checks: Mapping[str, OwnCheck] = field(
        default_factory=dict,
        metadata=about(
            "Checks of your own, by name: a command, what it is to print, until when "
            "(docs/own-checks.md).",
            valid=VALID,
            read=read_own_checks,
        ),
    )
    ports: PortRoles = field(
        default_factory=PortRoles,
        metadata=about("What the nodes' RDMA ports are for, where that is not guessed right."),
    )
    golden: Path | None = field(
        default=None,
        metadata=about(
            "What nodes are to be like, as `superv preflight --pin` writes it; without it each is "
            "compared with the others of its kind.",
            default="none",
        ),
    )
    node_python: str | None = field(
        default=None,
        metadata=about(
            "The Python of the nodes that has superv, for checks over many nodes.",
            pattern=r"/[^\0\n]*",
            valid="an absolute path",
            default="the one that runs superv here",
        ),
    )
    srun_options: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "More options of the srun that checks nodes, as `--account=ops`.",
        ),
    )
    ssh: Ssh = field(
        default_factory=Ssh,
        metadata=about("How health checks enter nodes that Slurm can't use."),
    )
    torchx_python: str | None = field(
        default=None,
        metadata=about(
            "The Python of an environment with torchx, which must not be the trainer's: torchx "
            "pins old versions. For `launcher: torchx` alone.",
            pattern=r"/[^\0\n]*",
            valid="an absolute path",
            default="none",
        ),
    )
    pyslurm_python: str | None = field(
        default=None,
        metadata=about(
            "The Python of an environment with pyslurm of this Slurm's release: engines then read "
            "jobs and nodes through it, not through squeue and sinfo (docs/pyslurm.md).",
            pattern=r"/[^\0\n]*",
            valid="an absolute path",
            default="none: Slurm's commands",
        ),
    )
    notify: tuple[NotifyTarget, ...] = field(
        default=(),
        metadata=about(
            "Called when a run is held, swaps a node, waits for what a person has to end, or "
            "ends, for every run; job.yaml may add more (docs/notify.md).",
            valid="a list of {command: [PROGRAM, ARGUMENT …]}",
        ),
    )
    log_cap_mb: int = field(
        default=256,
        metadata=about(
            "What is kept of each rank's log in one attempt: its beginning and its end; the middle "
            "of a longer one is dropped.",
            unit="MB",
            ge=1,
            le=1_000_000,
        ),
    )

    notes: tuple[str, ...] = ()  # one line each, for whoever launches a run

    @property
    def fleet(self) -> Path:
        """Where the fleet record is."""
        return self.fleet_file or self.state_dir / "fleet.db"


class PlacedSettings(dict[str, Mapping[str, Any]]):
    """Settings of checks, and where each stands, for errors that their checks find later."""

    def __init__(self, *values: Any) -> None:
        super().__init__(*values)
        self.places: dict[tuple[str, str], At] = {}  # by check and key; "" for the check itself


def read_settings(node: YamlNode, at: At) -> PlacedSettings:
    """Check → key → plain value; the checks themselves say what is valid. Raises UserError."""
    if not isinstance(node, YamlMapping):
        raise at.error(f"expected a mapping of checks to their settings, got {shown(node)}")
    found, wrong = PlacedSettings(), WrongKeys()
    for name, inner in node.entries.items():
        place = found.places[name, ""] = at.inside(name, inner)
        with wrong.collected(name):
            if not isinstance(inner, YamlMapping):
                raise place.error(
                    f"expected a mapping of settings, got {shown(inner)}; for example "
                    "fs.local: {warn_percent: 80}"
                )
            found[name] = {key: plain(value) for key, value in inner.entries.items()}
            found.places |= {(name, k): place.inside(k, v) for k, v in inner.entries.items()}
    wrong.told()
    return found


def plain(node: YamlNode) -> Any:
    """The value without its place: text, lists and mappings; numbers stay text."""
    if isinstance(node, YamlScalar):
        return None if node.kind == "null" else node.text
    if isinstance(node, YamlMapping):
        return {key: plain(value) for key, value in node.entries.items()}
    return [plain(item) for item in node.items]


def load_site(env: Mapping[str, str], system: Path = SYSTEM_FILE, *, only: bool = False) -> Site:
    """Merge the site files that exist; later ones win key by key.

    The order: `system`, $XDG_CONFIG_HOME/superv/site.yaml (without it ~/.config), and the file
    that $SUPERV_SITE names, which must exist. With `only`, `system` alone: what Slurm runs takes no
    word from an environment. Root reads no file that another user could have changed.

    Raises UserError.
    """
    site, wrong = _read_site(env, system, only=only)
    if wrong:
        raise SeveralError(wrong)
    return site


def look_at_site(
    env: Mapping[str, str], system: Path = SYSTEM_FILE
) -> tuple[Site, list[UserError]]:
    """As `load_site`, with what can be read of it, and every mistake.

    Raises UserError for a file that can't be read at all.
    """
    return _read_site(env, system, only=False)


def _read_site(env: Mapping[str, str], system: Path, *, only: bool) -> tuple[Site, list[UserError]]:
    values: dict[str, Any] = {}
    notes: list[str] = []
    wrong: list[UserError] = []
    last = system
    for path in [system] if only and system.exists() else [] if only else _files(env, system):
        with announced.at("reading site.yaml", path, instead=_ELSEWHERE):
            if why := trusted.problem(path, sticky=not only):
                raise UserError(f"{path}: not read as root: {why}")
            text = read_text(path)
        try:
            given, errors = read_rest(Site, parse(text, path), At(file=path, notes=notes))
        except UserError as error:  # not YAML
            given, errors = {}, [error]
        values |= given
        wrong += errors
        last = path
    if "state_dir" not in values:
        state = _base(env, "XDG_STATE_HOME", ".local/state")
        if state is None and os.geteuid() == 0:
            state = Path("/var/lib")  # Slurm's programs and cron may have no home
        if state is None:
            raise UserError(
                f"state_dir: no home directory is known; set HOME, or state_dir in {system}"
            )
        values["state_dir"] = state / "superv"
    site = Site(**values, notes=tuple(notes))
    engine, rank = site.engine_ports, site.rank_ports
    if engine.first <= rank.last and rank.first <= engine.last:
        text = f"{last}: engine_ports {engine} and rank_ports {rank} overlap; move one"
        wrong.append(UserError(text))
    return site, wrong


def _files(env: Mapping[str, str], system: Path) -> list[Path]:
    config = _base(env, "XDG_CONFIG_HOME", ".config")
    usual = [system] + ([config / "superv/site.yaml"] if config else [])
    try:
        found = []
        for path in usual:
            with announced.at("looking for site.yaml", path, instead=_ELSEWHERE):
                found += [path] if path.exists() else []
    except OSError as error:  # a folder that may not be searched hides a file: say so
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error
    named = env.get("SUPERV_SITE")
    return [*found, Path(named)] if named else found


def _base(env: Mapping[str, str], variable: str, below_home: str) -> Path | None:
    """A base directory; relative ones are ignored, as the XDG specification (0.8) asks."""
    if env.get(variable, "").startswith("/"):
        return Path(env[variable])
    home = env.get("HOME", "")
    return Path(home) / below_home if home.startswith("/") else None
