"""What a launch looks at before a queue is waited for: files, interpreter, modules, arguments."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from healthchecks.frame.check import Status
from healthchecks.frame.report import Finding
from supervisor.config import Job, parse_job
from supervisor.core.errors import UserError
from supervisor.doctor import before_launch, modules, nccl_variables
from supervisor.doctor.look_at_files import fields_in, script_options
from supervisor.doctor.trainer import python_command
from supervisor.engine.wiring import _settings_from_trainer

SCRIPT = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int)
parser.add_argument("-c", "--config")
parser.add_argument("--flash", action=argparse.BooleanOptionalAction)
args = parser.parse_args()
"""


def job(folder: Path, launcher: str = "local", **trainer: object) -> Job:
    if not {"command", "module", "script"} & trainer.keys():
        trainer["script"] = "train.py"
    if "command" not in trainer:
        trainer.setdefault("python", sys.executable)
    keys = {"name": "ring", "nodes": 1, "launcher": launcher, "trainer": trainer}
    return parse_job(json.dumps(keys), folder / "job.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "here.toml").touch()
    (tmp_path / "mine").mkdir()
    for name in ("__init__.py", "train.py"):
        (tmp_path / "mine" / name).write_text("raise SystemExit('nothing is imported')\n")
    return tmp_path


def found(job: Job, **how: float) -> list[Finding]:
    return asyncio.run(before_launch.look(job, **how))


@pytest.mark.parametrize(
    "trainer",
    [
        {},
        {"args": ["--steps", "5", "--conf=here.toml", "-c", "{node_rank}.yaml", "--no-flash"]},
        {"args": ["--config-name", "of_hydra.yaml", "--steps", "5"], "script": "other.py"},
        {"module": "mine.train"},
        {"module": "json.tool"},
        {"module": "mine.train", "preload": ["json", "mine"]},
        {"command": ["true"]},
        {"command": ["./run.sh", "x"]},
        {"command": [sys.executable, "-c", "pass"]},
        {"command": ["run.sh"], "env": {"PATH": "{folder}:/usr/bin:/bin"}},
        {"python": "binds", "env": {"PATH": "{folder}:/usr/bin:/bin"}},
        {"python": "./binds", "module": "mine.train"},
        {"python": "./speaks_after"},
        {"script": "app"},
        {"preload": ["os.path", "xml.etree"]},
        {"module": "edited.train", "env": {"PYTHONPATH": "{folder}/finder"}},
        {"args": ["-c", "s3://bucket/a.yaml", "--config=$HOME/a.yaml"]},
    ],
)
def test_what_is_well_is_not_talked_about(folder: Path, trainer: dict[str, object]) -> None:
    (folder / "other.py").write_text("import hydra\n")
    programs = {
        "run.sh": "",
        "binds": f'set -u\necho "on $LOCAL_RANK of $WORLD_SIZE"\nexec {sys.executable} "$@"',
        "speaks_after": f'{sys.executable} "$@"\necho "{{a report}}"\necho done',
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "app").mkdir()
    (folder / "app/__main__.py").touch()
    (folder / "finder").mkdir()
    (folder / "finder/sitecustomize.py").write_text(EDITED)
    env: dict[str, str] = dict(trainer.get("env", {}))  # type: ignore[call-overload]
    if env:
        trainer = {**trainer, "env": {k: v.format(folder=folder) for k, v in env.items()}}
    assert found(job(folder, **trainer)) == []


# A package that is installed to be edited: a finder of its own knows where its modules are.
EDITED = """
import importlib.util, pathlib, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        here = pathlib.Path(__file__).parent.parent / "mine"
        if name == "edited":
            init = str(here / "__init__.py")
            return importlib.util.spec_from_file_location(
                name, init, submodule_search_locations=["/nowhere"]
            )
        if name == "edited.train":
            return importlib.util.spec_from_file_location(name, str(here / "train.py"))
sys.meta_path.append(Finder())
"""


def test_a_script_as_interpreter_that_fails_here_refuses_nothing(folder: Path) -> None:
    """It may set up what only nodes have."""
    (folder / "loads").write_text("#!/bin/sh\necho 'no modules here' >&2\nexit 3\n")
    (folder / "loads").chmod(0o755)
    (one,) = found(job(folder, python="./loads"))
    assert (one.status, "no modules here" in one.result.seen) == (Status.WARN, True)


SURE = [
    (
        {"workdir": "/nowhere/at/all"},
        "trainer.workdir: /nowhere/at/all: not there (only / is there)",
    ),
    ({"workdir": "train.py"}, "train.py is not a directory"),
    ({"script": "trian.py"}, "trian.py: not there; fix trainer.script"),
    ({"script": "mine"}, "mine is a directory"),
    ({"python": "/usr/bin/python9"}, "trainer.python: /usr/bin/python9: not there; fix"),
    ({"python": "python9"}, "trainer.python: python9: not in PATH"),
    ({"python": "/usr/bin"}, "/usr/bin is a directory"),
    ({"python": "here.toml", "script": "./train.py"}, "here.toml: not in PATH"),
    ({"python": "./here.toml"}, "here.toml is not to be run"),
    ({"python": "/bin/false"}, "trainer.python: false ended with 1"),
    ({"command": ["trian"]}, "trainer.command: trian: not in PATH"),
    ({"command": ["./trian"]}, "trian: not there; fix trainer.command"),
    ({"module": "min.train"}, "no module min in"),
    ({"module": "mine.trian"}, "no module mine.trian in"),
    ({"module": "mine.trian"}, "; did you mean mine.train? else install"),
    ({"module": "mine"}, "mine is a package without __main__"),
    ({"module": "mine.train.deep"}, "mine.train is not a package"),
    ({"module": "mine.train", "preload": ["torhc"]}, "trainer.preload: torhc: no module torhc"),
    ({"args": ["--config", "gone.toml"]}, "trainer.args: gone.toml: "),
    ({"args": ["-c", "a/gone.yaml", "--config=b.yaml"]}, "gone.yaml: not there (only "),
]


@pytest.mark.parametrize(("trainer", "says"), SURE)
def test_what_is_sure_to_fail_refuses_a_launch(
    folder: Path, trainer: dict[str, object], says: str
) -> None:
    one = job(folder, **trainer)
    if trainer.get("args", [""])[0] == "-c":  # type: ignore[index]
        with pytest.raises(UserError, match=r"gone\.yaml: .*1 more mistake"):
            before_launch.notes(found(one), one)
        return
    with pytest.raises(UserError) as caught:
        before_launch.notes(found(one), one)
    assert says in str(caught.value)
    assert str(caught.value).endswith("; nothing was launched")


@pytest.mark.parametrize(
    ("trainer", "says"),
    [
        ({"args": ["--stpes", "5"]}, "train.py takes no such option; did you mean --steps? else"),
        ({"args": ["--yes=1"]}, "--yes: "),
        ({"args": ["--data", "gone.yaml"], "script": "other.py"}, "gone.yaml: not there"),
        (
            {"args": ["--config", "gone.yaml", "--config-path", "conf"], "script": "other.py"},
            "gone.yaml: not there",
        ),
        ({"args": ["--config", "gone.yaml"], "command": ["true"]}, "gone.yaml: not there"),
    ],
)
def test_what_is_told_by_text_alone_is_a_warning(
    folder: Path, trainer: dict[str, object], says: str
) -> None:
    (folder / "other.py").touch()
    one = job(folder, **trainer)
    (note,) = before_launch.notes(found(one), one)
    assert says in note


@pytest.mark.parametrize(("trainer", "says"), SURE)
def test_what_nodes_may_have_is_a_warning(
    folder: Path, trainer: dict[str, object], says: str
) -> None:
    """On Slurm, and not on storage that is known to be shared."""
    looked = found(job(folder, "sbatch", **trainer))
    assert looked and {one.status for one in looked} == {Status.WARN}
    assert all("nodes may differ" in one.result.seen for one in looked if one.check != "args")


def test_a_folder_that_may_not_be_read(folder: Path) -> None:
    """As an ordinary user: a child of this test that gives root up."""
    folder.chmod(0o700)
    code = (
        f"from supervisor.doctor.look_at_files import path_facts;print(path_facts({str(folder)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
        user=65534 if os.geteuid() == 0 else None, group=65534 if os.geteuid() == 0 else None,
        extra_groups=[] if os.geteuid() == 0 else None,
    )  # fmt: skip
    closed = "'read': False" in done.stdout or "'kind': 'missing'" in done.stdout
    assert closed is (os.geteuid() == 0), done.stdout


def test_an_interpreter_that_hangs_stops_nobody(folder: Path) -> None:
    (folder / "slow").write_text("#!/bin/sh\nsleep 60\n")
    (folder / "slow").chmod(0o755)
    (one,) = found(job(folder, python="./slow"), deadline_s=1.0)
    assert (one.status, "modules were not looked for" in one.result.seen) == (Status.UNKNOWN, True)


@pytest.mark.parametrize(
    "text",
    [
        "import sys\n",
        SCRIPT.replace("parse_args", "parse_known_args"),
        SCRIPT.replace("args =", "add_more(parser)\nargs ="),
        SCRIPT.replace('"--steps"', "NAME"),
        SCRIPT.replace("ArgumentParser()", "ArgumentParser(parents=[other])"),
        SCRIPT + "other = argparse.ArgumentParser()\n",
        SCRIPT.replace("args =", "sub = parser.add_subparsers()\nargs ="),
        "def broken(:\n",
    ],
)
def test_scripts_whose_options_are_not_known_by_their_text(folder: Path, text: str) -> None:
    (folder / "train.py").write_text(text)
    assert found(job(folder, args=["--stpes", "5"])) == []


def test_options_of_a_script(folder: Path) -> None:
    assert script_options(str(folder / "train.py")) == [
        *("--steps", "-c", "--config", "--flash", "--no-flash")
    ]


def test_dotted_options_are_fields_of_a_configuration(folder: Path) -> None:
    package = folder / "torchtitan"
    package.mkdir()
    for name in ("__init__.py", "train.py"):
        (package / name).touch()
    (folder / "torch").mkdir()
    (folder / "torch/__init__.py").touch()
    (package / "config.py").write_text("class Config:\n    steps: int = 5\n    training: int = 1\n")
    (folder / "my_models.py").write_text("class More:\n    experts: int = 8\n")
    args = ["--training.steps=5", "--training.no-experts", "--training.stpes", "5", "--plain", "x"]
    one = job(folder, module="torchtitan.train", hook="torchtitan", args=args)
    (note,) = before_launch.notes(found(one), one)
    assert (
        "no configuration of the trainer has a field stpes; did you mean --training.steps?" in note
    )
    assert fields_in([str(package)]) == ["steps", "training"]


def test_modules_are_found_by_an_old_python() -> None:
    """What runs in the trainer's interpreter is plain: no syntax of later versions than 3.8."""
    import ast

    ast.parse(modules.FIND, feature_version=(3, 8))


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("true", ""),
        ("{folder}/page", ""),
        ("{folder}/gone", "gone: not there; fix notify in the job file"),
        ("{folder}/here.toml", "here.toml is not to be run"),
        ("./page", "./page: a relative path; write all of it"),
        ("mial", "mial: not in PATH"),
        ("echo down | mail oncall", "a line for a shell is written [sh, -c, LINE]"),
    ],
)
def test_a_program_of_notify_that_can_not_be_called(folder: Path, program: str, says: str) -> None:
    """It would be missed when it should wake somebody."""
    (folder / "page").write_text("#!/bin/sh\n")
    (folder / "page").chmod(0o755)
    keys = {
        "name": "ring",
        "nodes": 1,
        "trainer": {"command": ["true"]},
        "notify": [{"command": [program.format(folder=folder), "down | now"]}],
    }
    one = parse_job(json.dumps(keys), folder / "job.yaml")
    seen = found(one)
    if not says:
        assert seen == []
        return
    with pytest.raises(UserError) as caught:
        before_launch.notes(seen, one)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("lint", "refused"), [("refuse", True), ("tell", False), ("off", False)], ids=str
)
def test_variables_of_nccl_that_cannot_work_stop_a_launch(
    tmp_path: Path, lint: str, refused: bool
) -> None:
    keys = {
        "name": "ring",
        "nodes": 2,
        "trainer": {"module": "train", "env": {"NCCL_P2P_DISABLE": "true"}},
        "nccl": {"lint": lint},
    }
    one = parse_job(json.dumps(keys), tmp_path / "job.yaml")
    seen = nccl_variables.look(one)
    assert [f.status for f in seen] == {
        "refuse": [Status.FAIL],
        "tell": [Status.WARN],
        "off": [],
    }[lint]
    if refused:
        with pytest.raises(UserError, match="NCCL_P2P_DISABLE='true' is read as 0"):
            before_launch.notes(seen, one)


def test_what_is_in_an_image_is_not_looked_for_here(folder: Path) -> None:
    """Python, modules and paths of the image are not the machine's; what is mounted is."""
    image = folder / "image.sif"
    image.touch()
    trainer = {
        "module": "in_the_image",
        "python": "/opt/in/the/image/python",
        "args": ["--config", "/in/the/image.toml", "--config=none.toml"],
    }
    keys = {"name": "ring", "nodes": 1, "launcher": "local", "trainer": trainer}
    keys |= {"container": {"runtime": "enroot", "image": str(image)}}
    inside = parse_job(json.dumps(keys), folder / "job.yaml")
    said = [one.result.seen for one in found(inside)]
    assert [text for text in said if "enroot: not in PATH" in text]
    assert [text for text in said if "none.toml" in text]
    assert not [text for text in said if "in/the/image" in text or "in_the_image" in text]
    assert python_command(inside) is None
    assert "cuda.libs" not in _settings_from_trainer(inside)
