"""The hook in TorchTitan's ranks, tried on trainers of its shapes: what it sets, and what it says.

The trainers are file trees with TorchTitan's names and nothing else; tests/titan has the real ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.agent import starter, warm
from supervisor.agent.hook_state import HookState, HookStates
from supervisor.config.job import Job, parse_job
from supervisor.config.site import Site
from supervisor.core.check_status import Status
from supervisor.core.errors import UserError
from supervisor.doctor import trainer
from supervisor.engine.hook_notes import hook_notes, on_network
from supervisor.engine.wiring import wire_job
from supervisor.hooks import torchtitan

MANAGER = """
import dataclasses
@dataclasses.dataclass(kw_only=True, slots=True)
class Checkpoint:
    enable: bool = False
    folder: str = "checkpoint"
    interval: int = 500
    keep_latest_k: int = 10
    last_save_model_only: bool = True
    last_save_in_hf: bool = True
    initial_load_path: str | None = None
    initial_load_model_only: bool = True
    exclude_from_loading: list = dataclasses.field(default_factory=lambda: ["optimizer"])
    def __post_init__(self):
        if self.last_save_in_hf and not self.last_save_model_only:
            raise ValueError("last_save_in_hf requires last_save_model_only")
@dataclasses.dataclass
class Training:
    steps: int = 10000
@dataclasses.dataclass
class Config:
    training: Training = dataclasses.field(default_factory=Training)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    dump_folder: str = "./outputs"
class ConfigManager:
    def parse_args(self, args=None):
        return Config()
"""
COLLECTOR = """
class GarbageCollection:
    def run(self, step_count):
        pass
"""
BASE = """
class BaseCheckpointManager:
    def load(self, step=-1):
        return self._load(step)
    def save(self, curr_step, last_step=False):
        return self._save(curr_step, last_step)
"""
DCP = """
from torchtitan.components.checkpointer.base import BaseCheckpointManager
class CheckpointManager(BaseCheckpointManager):
    def _load(self, step): pass
    def _save(self, step, last): pass
"""
# 0.2.2: the class is where 0.3 only has its name
OLDER = BASE.replace("BaseCheckpointManager", "CheckpointManager") + (
    "    def _load(self, step): pass\n    def _save(self, step, last): pass\n"
)
COMPATIBLE = "from torchtitan.components.checkpointer.dcp import CheckpointManager\n"
LOGGER = """
import logging
logger = logging.getLogger("torchtitan.structured_logger")
logger.propagate = False
logger.setLevel(logging.INFO)
def span(name):
    logger.info(name, extra={"log_type": "event", "log_type_name": name})
"""
TRAIN = """
import dataclasses, json, os
from torchtitan.config.manager import ConfigManager
from torchtitan.tools.utils import GarbageCollection
from {manager} import CheckpointManager
from torchtitan.observability.structured_logger.structured_logging import span
config = ConfigManager().parse_args()
collector, checkpointer = GarbageCollection(), CheckpointManager()
checkpointer.load()
for step in range(1, 4):
    span("step_start")
    collector.run(step)
    span("fwd_bwd_start")
    checkpointer.save(step, last_step=False)
    if step < 3:
        span("fwd_bwd_end")
        span("step_end")
print(json.dumps(dataclasses.asdict(config)))
"""
COMPONENTS, CHECKPOINTER = "components/checkpoint.py", "components/checkpointer"
SHAPES = {
    "0.2.2": ({COMPONENTS: OLDER}, "torchtitan.components.checkpoint"),
    "0.3.0": (
        {
            COMPONENTS: COMPATIBLE,
            f"{CHECKPOINTER}/base.py": BASE,
            f"{CHECKPOINTER}/dcp.py": DCP,
        },
        "torchtitan.components.checkpoint",
    ),
    "main": (
        {f"{CHECKPOINTER}/base.py": BASE, f"{CHECKPOINTER}/dcp.py": DCP},
        "torchtitan.components.checkpointer.dcp",
    ),
}


class Rank:
    """A rank of such a trainer, started cold as an agent does."""

    def __init__(self, home: Path, shape: str = "0.3.0", **changed: str) -> None:
        self.home = home
        files, manager = SHAPES[shape]
        files = {
            "config/manager.py": MANAGER,
            "tools/utils.py": COLLECTOR,
            "observability/structured_logger/structured_logging.py": LOGGER,
            "train.py": TRAIN.format(manager=manager),
            **files,
            **{name.replace("__", "/") + ".py": text for name, text in changed.items()},
        }
        for name, text in files.items():
            path = home / "torchtitan" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def run(self, *flags: str, **env: str) -> tuple[subprocess.CompletedProcess[str], HookState]:
        starting, hook = self.home / "starter.py", self.home / "hook.py"
        starting.write_bytes(warm.STARTER)
        hook.write_bytes(warm.HOOKS["torchtitan"])
        order = {
            "argv": ["-m", "torchtitan.train", *flags],
            "cwd": str(self.home),
            "rank": 0,
            "hook": str(hook),
            "state": str(self.home / "state"),
        }
        (self.home / "order.json").write_text(json.dumps(order))
        done = subprocess.run(
            [sys.executable, str(starting), "rank", str(self.home / "order.json")],
            env={"PATH": os.environ["PATH"], **env},
            cwd=self.home,
            capture_output=True,
            text=True,
        )
        states = HookStates(self.home / "bell", lambda rank: None)
        states.follow(0, self.home / "state")
        state = states.state(0)
        states.close()
        assert state is not None
        return done, state


FRESH = {"SUPERV_SAVE_DIR": "/ckpt/a0001"}
RESUMED = {"SUPERV_SAVE_DIR": "/ckpt/a0002", "SUPERV_RESUME_PATH": "/ckpt/a0001/step-5"}


@pytest.mark.parametrize("shape", SHAPES)
def test_one_hook_serves_all_shapes(tmp_path: Path, shape: str) -> None:
    done, state = Rank(tmp_path, shape).run(**RESUMED, SUPERV_DUMP_DIR="/local/dump")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    config = json.loads(done.stdout)
    assert config["dump_folder"] == "/local/dump"
    assert config["checkpoint"] == {
        "enable": True,
        "folder": "/ckpt/a0002",
        "interval": 500,
        "keep_latest_k": 0,
        "last_save_model_only": False,
        "last_save_in_hf": False,
        "initial_load_path": "/ckpt/a0001/step-5",
        "initial_load_model_only": False,
        "exclude_from_loading": [],
    }
    assert (state.phase, state.step, state.trouble) == ("step", 3, "")
    assert state.target == 10_000
    assert all(state.first[name] for name in ("import", "build", "load", "step", "save"))
    assert state.detail == "fwd_bwd"


def test_a_start_keeps_what_its_user_begins_from(tmp_path: Path) -> None:
    mine = MANAGER.replace("initial_load_path: str | None = None", "initial_load_path: str = '/w'")
    done, _ = Rank(tmp_path, config__manager=mine).run(**FRESH)
    config = json.loads(done.stdout)["checkpoint"]
    assert config["initial_load_path"] == "/w" and config["initial_load_model_only"]
    assert config["exclude_from_loading"] == ["optimizer"]


def test_without_checkpoints_nothing_is_set(tmp_path: Path) -> None:
    done, state = Rank(tmp_path).run(SUPERV_SAVE_DIR="")
    assert json.loads(done.stdout)["checkpoint"]["folder"] == "checkpoint"
    assert state.trouble == ""


def test_a_flag_that_says_otherwise_is_said(tmp_path: Path) -> None:
    flags = ("--checkpoint.folder=mine", "--checkpoint.no-enable", "--checkpoint.interval", "5")
    done, state = Rank(tmp_path).run(*flags, **FRESH)
    assert done.stderr.splitlines() == [
        "superv: --checkpoint.folder has no effect: superv sets checkpoint.folder to '/ckpt/a0001'",
        "superv: --checkpoint.no-enable has no effect: superv sets checkpoint.enable to True",
    ]
    assert state.trouble == "", "the hook does what it should"
    assert torchtitan.overruled(flags) == ["--checkpoint.folder", "--checkpoint.no-enable"]


BROKEN = {
    "ConfigManager.parse_args was not found": {
        "config__manager": MANAGER.replace("parse_args", "parse"),
        "train": TRAIN.format(manager=SHAPES["0.3.0"][1]).replace("parse_args", "parse"),
    },
    "ConfigManager.parse_args was never called": {
        "train": TRAIN.format(manager=SHAPES["0.3.0"][1]).replace(
            "ConfigManager().parse_args()",
            "__import__('torchtitan.config.manager').config.manager.Config()",
        ),
    },
    "GarbageCollection.run was not found": {
        "tools__utils": COLLECTOR.replace("run", "collect"),
        "train": TRAIN.format(manager=SHAPES["0.3.0"][1]).replace(
            "collector.run", "collector.collect"
        ),
    },
    "CheckpointManager.save was not found": {
        "components__checkpointer__base": BASE.replace("def save", "def keep"),
        "train": TRAIN.format(manager=SHAPES["0.3.0"][1]).replace(".save(", ".keep("),
    },
    "CheckpointManager.load was never called": {
        "train": TRAIN.format(manager=SHAPES["0.3.0"][1]).replace("checkpointer.load()", ""),
    },
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_point_that_is_not_there_or_never_fires_is_said(tmp_path: Path, text: str) -> None:
    done, state = Rank(tmp_path, **BROKEN[text]).run(**FRESH)
    assert done.returncode == 0, done.stderr
    assert state.trouble.startswith(f"TorchTitan's {text}: ")
    assert done.stderr == f"superv: {state.trouble}\n", "once"


@pytest.mark.parametrize("gone", ["folder", "last_save_model_only"])
def test_a_configuration_without_the_field_stops_the_rank(tmp_path: Path, gone: str) -> None:
    other = MANAGER.replace(f"    {gone}:", "    renamed:").replace(f"self.{gone}", "self.renamed")
    done, _ = Rank(tmp_path, config__manager=other).run(**FRESH)
    assert done.returncode == 1
    assert f"configuration has no checkpoint.{gone}, which superv sets" in done.stderr


def test_a_rank_of_an_older_agent_is_read(tmp_path: Path) -> None:
    """Its shared memory ends before the span and the trouble."""
    left = Path(__file__).parents[1] / "data" / "agent_node" / "a0003" / "rank0.state"
    (tmp_path / "state").write_bytes(left.read_bytes())
    assert left.stat().st_size == starter.STATE.size
    states = HookStates(tmp_path / "bell", lambda rank: None)
    states.follow(0, tmp_path / "state")
    state = states.state(0)
    states.close()
    assert state is not None and (state.step, state.detail, state.trouble) == (42, "", "")


# --- what is said before a launch ---


def job(home: Path, **trainer: object) -> Job:
    keys = {"module": "torchtitan.train", "hook": "torchtitan", "python": sys.executable, **trainer}
    whole = {"name": "t", "nodes": 1, "launcher": "local", "trainer": keys}
    return parse_job(json.dumps(whole | {"checkpoints": {"dir": "/c"}}), home / "job.yaml")


@pytest.mark.parametrize(
    ("args", "folder"),
    [
        ((), "outputs"),
        (("--dump_folder", "/shared/out"), "/shared/out"),
        (("--dump-folder=mine-too",), "mine-too"),
        (("--job.dump_folder", "old"), "old"),
        (("--dump_folder",), ""),
    ],
)
def test_where_its_own_files_go(args: tuple[str, ...], folder: str) -> None:
    assert torchtitan.dump_folder(args) == folder


def test_flags_without_effect_are_named_at_launch(tmp_path: Path) -> None:
    flags = ["--checkpoint.folder", "mine", "--checkpoint.interval", "5"]
    assert hook_notes(job(tmp_path)) == ()
    assert hook_notes(job(tmp_path, args=flags)) == (
        "trainer.args: --checkpoint.folder: no effect, superv sets these fields",
    )


@pytest.mark.parametrize(
    ("kind", "shared"),
    [("nfs4", True), ("lustre", True), ("fuse.weka", True), ("ext4", False), ("fuse.lxcfs", False)],
)
def test_which_storage_is_shared(kind: str, shared: bool) -> None:
    assert on_network(kind) is shared


def test_its_dump_folder_is_a_key(tmp_path: Path) -> None:
    local = job(tmp_path, dump_dir="/local/dump")
    wire = wire_job(local, Site(state_dir=tmp_path), "4f1c9a27e0b3", None, {})
    assert wire.env["SUPERV_DUMP_DIR"] == "/local/dump"
    with pytest.raises(UserError, match="has no effect without a hook"):
        job(tmp_path, dump_dir="/local/dump", hook="none", args=["{save_dir}", "{resume_path}"])


@pytest.mark.parametrize(
    ("given", "state", "says"),
    [
        ("log_freq: int = 5", Status.OK, "its configuration suits superv"),
        ("log_freq: int = 7", Status.WARN, "looked at every 7 steps and saved every 500"),
        ("freq: int = 7", Status.UNKNOWN, "AttributeError: 'Metrics' object has no attribute"),
    ],
)
def test_doctor_reads_the_configuration(
    tmp_path: Path, given: str, state: Status, says: str
) -> None:
    more = f"""
@dataclasses.dataclass
class Metrics:
    {given}
class Debug:
    enable_structured_logging = True
Config.metrics, Config.debug = Metrics(), Debug()
"""
    Rank(tmp_path, config__manager=MANAGER + more)
    (tmp_path / "torchtitan" / "train.py").write_text("")
    keys = {"preload": [], "workdir": str(tmp_path)}
    found = asyncio.run(trainer.look(job(tmp_path, **keys)))
    (one,) = [finding for finding in found if finding.check == "torchtitan"]
    assert one.status is state and says in one.result.seen, one
