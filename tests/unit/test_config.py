"""job.yaml and site.yaml: every mistake is one line that says where and what is valid."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.config import (
    Checkpoints,
    Job,
    PortRange,
    Progress,
    Site,
    Trainer,
    load_job,
    load_site,
    parse_job,
)
from supervisor.config.job import TORCHTITAN_KEYS
from supervisor.config.page import page
from supervisor.config.schema import keys
from supervisor.config.slurm import OPTIONS, OWNED
from supervisor.config.trainer import NAMED_PROGRESS
from supervisor.core.errors import UserError
from supervisor.core.policy import Policy

ROOT = Path(__file__).parents[2]
HEAD = "name: demo\nnodes: 2\n"  # lines 1 and 2
MINIMAL = HEAD + "trainer: {module: train}\n"
TITAN = HEAD + "trainer: {module: torchtitan.train, hook: torchtitan}\n"


def parse(text: str, path: str = "job.yaml"):
    return parse_job(text, Path(path))


def error_of(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    text = str(caught.value)
    assert len(text.splitlines()) == 1, text
    return text


# --- what a good file gives -------------------------------------------------------------------


def test_defaults():
    job = parse(MINIMAL, "/jobs/job.yaml")
    assert (job.name, job.nodes, job.spares, job.launcher) == ("demo", 2, 0, "sbatch")
    assert job.slurm == {}
    assert job.checkpoints is None
    assert job.policy == Policy()
    assert job.progress == NAMED_PROGRESS["plain"]
    assert job.trainer.argv() == ("python3", "-m", "train")
    assert job.trainer.workdir == Path("/jobs")
    assert (job.trainer.ranks_per_node, job.trainer.env, job.trainer.hook) == (1, {}, "none")


def test_the_torchtitan_hook_brings_patterns_and_required_keys():
    job = parse(TITAN + "checkpoints: {dir: /c}\n")
    assert job.progress == NAMED_PROGRESS["torchtitan"]
    assert job.checkpoints is not None
    assert job.checkpoints.required == TORCHTITAN_KEYS


def test_what_the_user_writes_stands_over_the_hook():
    job = parse(TITAN + "progress: plain\ncheckpoints: {dir: /c, required: [model]}\n")
    assert job.progress == NAMED_PROGRESS["plain"]
    assert job.checkpoints is not None
    assert job.checkpoints.required == ("model",)


def test_text_stays_as_it_was_written():
    job = parse(
        HEAD + "slurm: {time: 12:00:00, partition: no, account: 0123, mem: 0, gres: gpu:8}\n"
        "trainer:\n  module: train\n  args: [--lr, 1e-4, --flag, yes, 1_000]\n"
        "  env: {A: 010, B: on, C: 1.50, D: '', E: 2024-01-01}\n"
    )
    assert job.slurm == {
        "time": "12:00:00",
        "partition": "no",
        "account": "0123",
        "mem": "0",
        "gres": "gpu:8",
    }
    assert job.trainer.args == ("--lr", "1e-4", "--flag", "yes", "1_000")
    assert job.trainer.env == {"A": "010", "B": "on", "C": "1.50", "D": "", "E": "2024-01-01"}


@pytest.mark.parametrize(
    "time", ["60", "10:00", "12:00:00", "2-0", "2-0:30", "14-00:00:00", "UNLIMITED"]
)
def test_slurm_times(time):
    assert parse(MINIMAL + f"slurm: {{time: {time}}}\n").slurm == {"time": time}


@pytest.mark.parametrize(
    ("written", "passed"),
    [
        ("true", {"exclusive": "true"}),
        ("yes", {"exclusive": "true"}),
        ("user", {"exclusive": "user"}),
        ("false", {}),
    ],
)
def test_slurm_flags(written, passed):
    assert parse(MINIMAL + f"slurm: {{exclusive: {written}}}\n").slurm == passed


def test_relative_paths_start_at_the_file(tmp_path, monkeypatch):
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "job.yaml").write_text(
        HEAD + "trainer: {script: ./train.py, python: venv/bin/python, workdir: work,\n"
        '  args: ["{save_dir}", "{resume_path}"]}\ncheckpoints: {dir: ckpt}\n'
    )
    monkeypatch.chdir(tmp_path)
    job = load_job(Path("jobs/job.yaml"))
    assert job.trainer.argv()[:2] == (f"{folder}/venv/bin/python", f"{folder}/train.py")
    assert job.trainer.workdir == folder / "work"
    assert job.checkpoints is not None
    assert job.checkpoints.dir == folder / "ckpt"
    assert job.path == folder / "job.yaml"
    monkeypatch.chdir("/")  # the run's snapshot means the same wherever it is read
    assert parse_job(job.source, job.path) == job


def test_a_home_directory_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert parse(HEAD + "trainer: {script: ~/t.py}\n").trainer.script == Path("/home/ann/t.py")


def test_command_takes_args_after_it():
    trainer = parse(HEAD + "trainer: {command: [bash, run.sh], args: [-x]}\n").trainer
    assert trainer.argv() == ("bash", "run.sh", "-x")


def test_empty_sections_are_their_defaults():
    empty = "slurm:\npolicy:\n"
    assert parse(MINIMAL + empty).policy == Policy()
    assert parse(HEAD + "trainer:\n  module: train\n  env:\n").trainer.env == {}


@pytest.mark.parametrize(
    "rest",
    [
        "trainer: {module: t, args: ['--to={save_dir}', '--from={resume_path}']}\n",
        "trainer: {module: t, env: {TO: '{save_dir}', FROM: '{resume_step}'}}\n",
        "trainer: {command: [t, '{save_dir}', '{resume_step}']}\n",
        "trainer: {module: t, hook: torchtitan}\n",
    ],
)
def test_ways_to_hand_checkpoints_over(rest):
    assert parse(HEAD + rest + "checkpoints: {dir: /c}\n").checkpoints is not None


def test_handoff_by_environment():
    assert parse(MINIMAL + "checkpoints: {dir: /c, handoff: env}\n").checkpoints is not None


def test_braces_that_are_no_placeholders_are_left_alone():
    args = ("{}", '{"a": 1}', "${HOME}", "{batch}")
    text = HEAD + "trainer: {module: t, args: ['{}', '{\"a\": 1}', '${HOME}', '{batch}']}\n"
    assert parse(text).trainer.args == args


@pytest.mark.parametrize(
    ("name", "line", "step", "loss"),
    [
        (
            "torchtitan",
            "[titan] 2026-01-02 03:04:05,678 - root - INFO - step: 90  loss:  2.88457  "
            "grad_norm:  0.4  memory:  1.00GiB(2.00%)  tps: 1,234",
            "90",
            "2.88457",
        ),
        ("torchtitan", "[titan] t - root - INFO - step:  1  loss:      nan  grad", "1", "nan"),
        ("torchtitan", "[titan] t - root - INFO - validate step: 10  loss:  2.5", None, None),
        ("torchtitan", "[titan] t - root - INFO - Training starts at step 9", None, None),
        ("plain", "step: 12 loss: 3.4", "12", "3.4"),
        ("plain", "[rank 0] Step=7, lr=1e-4, loss=-1.5e-3", "7", "-1.5e-3"),
        ("plain", "step: 12", "12", None),
        ("plain", "resumed at step 12", None, None),
        ("plain", "missteps: 12", None, None),
    ],
)
def test_named_progress_finds_steps(name, line, step, loss):
    match = re.search(NAMED_PROGRESS[name].step, line)
    assert (match and match["step"]) == step
    assert (match and match["loss"]) == loss


@pytest.mark.parametrize(
    ("name", "line", "groups"),
    [
        ("torchtitan", "[titan] t - root - INFO - Training starts at step 9", {"next": "9"}),
        ("plain", "resumed at step 8", {"step": "8", "next": None}),
        ("plain", "Resuming from step 8", {"step": "8", "next": None}),
        ("plain", "Training starts at step 9", {"step": None, "next": "9"}),
        ("plain", "step: 8 loss: 1", None),
    ],
)
def test_named_progress_finds_where_training_starts(name, line, groups):
    match = re.search(NAMED_PROGRESS[name].resumed or "", line)
    assert (match and match.groupdict()) == groups


def test_own_patterns():
    text = "progress: {step: 'it (?P<step>[0-9]+) (?P<loss>.*)', resumed: 'at (?P<next>[0-9]+)'}\n"
    progress = parse(MINIMAL + text).progress
    assert progress.step == "it (?P<step>[0-9]+) (?P<loss>.*)"
    assert progress.resumed == "at (?P<next>[0-9]+)"


# --- mistakes -----------------------------------------------------------------------------------

MISTAKES = {
    # the file
    "": "job.yaml: empty; docs/configuration.md lists the keys",
    "# nothing\n": "job.yaml: empty; docs/configuration.md lists the keys",
    "- a\n": "job.yaml:1: expected a mapping of keys to values, got a list",
    "hello\n": 'job.yaml:1: expected a mapping of keys to values, got "hello"',
    "name: a\n  nodes: 2\n": "job.yaml:2: not valid YAML: mapping values are not allowed here "
    "(column 8)",
    "name: [a\n": "job.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>' "
    "(column 1)",
    "name: a\n---\nname: b\n": "job.yaml:2: not valid YAML: but found another document (column 1)",
    "name: a\nx: \x07\n": "job.yaml:2: not valid YAML: a control character",
    "name: a\nname: b\n": "job.yaml:2: name: given twice, first on line 1; remove one",
    "name: demo\nnodes: &n 2\nspares: *n\n": "job.yaml:2: spares: used again through an alias; "
    "write the value out where it is needed",
    "name: !!python/name:os.system x\n": "job.yaml:1: name: the tag "
    '"tag:yaml.org,2002:python/name:os.system" has no place here; remove it',
    "? [a]\n: b\n": "job.yaml:1: a key must be text, got a list",
    # the top
    "nodes: 2\ntrainer: {module: t}\n": "job.yaml:1: name: missing; expected 1 to 41 of a-z, 0-9 "
    "and -, no - first",
    "name: Demo\n": 'job.yaml:1: name: expected 1 to 41 of a-z, 0-9 and -, no - first, got "Demo"',
    'name: "a\\nb"\n': "job.yaml:1: name: expected 1 to 41 of a-z, 0-9 and -, no - first, got "
    "'a\\nb'",
    "name: a\n\nnodes: sixty\n": "job.yaml:3: nodes: expected a whole number from 1 to 100000, "
    'got "sixty"',
    "nodes: '60'\n": 'job.yaml:1: nodes: expected a whole number from 1 to 100000, got "60"',
    "nodes: 0\n": "job.yaml:1: nodes: expected a whole number from 1 to 100000, got 0",
    "nodes: 0x10\n": "job.yaml:1: nodes: expected a whole number from 1 to 100000, got 0x10",
    "nodes: 1.5\n": "job.yaml:1: nodes: expected a whole number from 1 to 100000, got 1.5",
    "nodes: true\n": "job.yaml:1: nodes: expected a whole number from 1 to 100000, got true",
    "nodes:\n  - 1\n": "job.yaml:1: nodes: expected a whole number from 1 to 100000, got a list",
    "nodes:\n": "job.yaml:1: nodes: expected a whole number from 1 to 100000, got nothing",
    "spares: -1\n": "job.yaml:1: spares: expected a whole number from 0 to 10000, got -1",
    "node: 2\n": "job.yaml:1: node: unknown key; valid: checkpoints, launcher, name, nodes, "
    "policy, preflight, progress, slurm, spares, trainer; did you mean nodes?",
    '"a\\nb": 2\n': "job.yaml:1: 'a\\nb': unknown key; valid: checkpoints, launcher, name, nodes, "
    "policy, preflight, progress, slurm, spares, trainer",
    "launcher: torchx\n": 'job.yaml:1: launcher: expected one of sbatch, local, got "torchx"',
    # slurm
    MINIMAL + "slurm: [a]\n": "job.yaml:4: slurm: expected a mapping of sbatch options to values, "
    "got a list",
    MINIMAL + "slurm:\n  nodes: 2\n": "job.yaml:5: slurm.nodes: cannot be set here: write nodes "
    "and spares at the top of the file",
    MINIMAL + "slurm: {partitoin: a}\n": "job.yaml:4: slurm.partitoin: no sbatch option that "
    f"superv passes on; valid: {', '.join(sorted(OPTIONS))}; did you mean partition?",
    MINIMAL + "slurm: {partition: [a, b]}\n": "job.yaml:4: slurm.partition: expected text, got a "
    "list",
    MINIMAL + "slurm: {qos: true}\n": "job.yaml:4: slurm.qos: expected a value (quality of "
    "service), got true",
    MINIMAL + "slurm: {exclusive: maybe}\n": "job.yaml:4: slurm.exclusive: expected true or "
    'false, got "maybe"',
    MINIMAL + "slurm: {time: 2 weeks}\n": "job.yaml:4: slurm.time: expected minutes, "
    'hours:minutes:seconds or days-hours:minutes:seconds, as 14-00:00:00, got "2 weeks"',
    MINIMAL + 'slurm: {comment: "a\\n#SBATCH -p b"}\n': "job.yaml:4: slurm.comment: expected a "
    "value (free text), got 'a\\n#SBATCH -p b'",
    # trainer
    HEAD: "job.yaml:1: trainer: missing; expected a mapping",
    HEAD + "trainer: train.py\n": 'job.yaml:3: trainer: expected a mapping, got "train.py"',
    HEAD + "trainer: {}\n": "job.yaml:3: trainer: expected exactly one of module, script, "
    "command; got none",
    HEAD + "trainer: {module: a, script: b.py}\n": "job.yaml:3: trainer: expected exactly one of "
    "module, script, command; got module and script",
    HEAD + "trainer:\n  module: t\n  ranks_per_nod: 8\n": "job.yaml:5: trainer.ranks_per_nod: "
    "unknown key; valid: args, command, env, hook, module, preload, python, ranks_per_node, "
    "script, snapshot, workdir; did you mean ranks_per_node?",
    HEAD + "trainer: {command: [a], preload: [torch]}\n": "job.yaml:3: trainer.preload: works with "
    "module and script only: a command is started as it is",
    HEAD + "trainer: {command: [a], hook: torchtitan}\n": "job.yaml:3: trainer.hook: works with "
    "module and script only: a command is started as it is",
    HEAD + "trainer: {module: train.py/x}\n": "job.yaml:3: trainer.module: expected the dotted "
    'name of a Python module, got "train.py/x"',
    HEAD + "trainer: {command: []}\n": "job.yaml:3: trainer.command: expected a list of text with "
    "at least one item, got an empty list",
    HEAD + "trainer: {command: [t], python: p}\n": "job.yaml:3: trainer.python: has no effect on "
    "a command; put the interpreter into the command",
    HEAD + "trainer: {module: t, args: --a b}\n": "job.yaml:3: trainer.args: expected a list of "
    'text, got "--a b"; write one item a line, each after `- `',
    HEAD + "trainer:\n  module: t\n  args:\n    - --to\n    - {save_dir}\n": "job.yaml:7: "
    'trainer.args[1]: expected text, got a mapping; quote it: "{save_dir}"',
    HEAD + "trainer: {module: t, args: ['{save_dri}']}\n": 'job.yaml:3: trainer.args: "{save_dri}"'
    ": unknown placeholder {save_dri}; did you mean save_dir?",
    HEAD + "trainer: {module: t, args: ['{save_dir}']}\n": "job.yaml:3: trainer: uses {save_dir}, "
    "but there is no checkpoints: {dir: …}",
    HEAD + 'trainer: {module: t, args: ["a\\0b"]}\n': "job.yaml:3: trainer.args[0]: 'a\\x00b' "
    "holds a character that cannot be passed on",
    HEAD + 'trainer: {module: t, args: ["\\ud800"]}\n': "job.yaml:3: trainer.args[0]: '\\ud800' "
    "holds a character that cannot be passed on",
    HEAD + 'trainer: {module: t, args: ["\\UFFFFFFFF"]}\n': "job.yaml:1: not valid YAML: an escape "
    "that is no character",
    HEAD + "trainer: {module: t, env: {RANK: 1}}\n": "job.yaml:3: trainer.env.RANK: superv sets "
    "this variable for every rank; remove it",
    HEAD + "trainer: {module: t, env: {SUPERV_X: 1}}\n": "job.yaml:3: trainer.env.SUPERV_X: "
    "superv sets this variable for every rank; remove it",
    HEAD + "trainer: {module: t, env: {A B: 1}}\n": 'job.yaml:3: trainer.env."A B": not a '
    "variable's name: letters, digits and _ only, no digit first",
    HEAD + "trainer: {module: t, env: {A: }}\n": "job.yaml:3: trainer.env.A: expected text, got "
    'nothing; write "" for an empty text',
    HEAD + "trainer: {module: t, workdir: $HOME/x}\n": 'job.yaml:3: trainer.workdir: "$HOME/x": '
    "variables are not expanded; write the path out",
    HEAD + "trainer: {module: t, hook: torch-titan}\n": "job.yaml:3: trainer.hook: expected one "
    'of none, torchtitan, got "torch-titan"; did you mean torchtitan?',
    HEAD + "trainer: {module: t, ranks_per_node: 0}\n": "job.yaml:3: trainer.ranks_per_node: "
    "expected a whole number from 1 to 1024, got 0",
    # progress
    MINIMAL + "progress: titan\n": "job.yaml:4: progress: expected one of plain, torchtitan, or a "
    'mapping with step and resumed, got "titan"; did you mean torchtitan?',
    MINIMAL + "progress: {step: 'a (b'}\n": "job.yaml:4: progress.step: not a regular expression: "
    "missing ), unterminated subpattern at position 2",
    MINIMAL + "progress: {step: 'step (.*)'}\n": "job.yaml:4: progress.step: needs a group "
    "(?P<step>…)",
    MINIMAL + "progress: {step: '(?P<step>1)(?P<los>2)'}\n": "job.yaml:4: progress.step: the "
    "group los has no meaning; valid: step, loss",
    MINIMAL + "progress: {step: '(?P<step>1)', resumed: 'x'}\n": "job.yaml:4: progress.resumed: "
    "needs a group (?P<step>…) or (?P<next>…)",
    MINIMAL + "progress: {resumed: 'x'}\n": "job.yaml:4: progress.step: missing; expected a "
    "regular expression with a group (?P<step>…)",
    # checkpoints
    TITAN + "checkpoints: {}\n": "job.yaml:4: checkpoints.dir: missing; expected a path",
    TITAN + "checkpoints: {dir: /c, format: hf}\n": "job.yaml:4: checkpoints.format: expected "
    'dcp, got "hf"',
    TITAN + "checkpoints: {dir: /c, kept: 5}\n": "job.yaml:4: checkpoints.kept: unknown key; "
    "valid: dir, format, handoff, keep, keep_every, required; did you mean keep?",
    TITAN + "checkpoints: {dir: /c, keep: 1}\n": "job.yaml:4: checkpoints.keep: expected 0, or 2 "
    "and more: with one, nothing is left when it goes bad",
    TITAN + "checkpoints: {dir: /c, keep: -1}\n": "job.yaml:4: checkpoints.keep: expected 0, or 2 "
    "and more, got -1",
    HEAD + "trainer: {module: train, snapshot: maybe}\n": "job.yaml:3: trainer.snapshot: expected "
    'true or false, got "maybe"',
    TITAN + "progress: {step: '(?P<step>1)'}\ncheckpoints: {dir: /c}\n": "job.yaml:4: progress: "
    "needs resumed: with checkpoints, superv checks the step that a run comes back at",
    MINIMAL + "checkpoints: {dir: /c}\n": "job.yaml:4: checkpoints: the trainer is not told where "
    "to save and what to resume; write trainer.hook: torchtitan, or use {save_dir} and "
    "{resume_path} or {resume_step} in trainer.args, or write checkpoints.handoff: env if the "
    "trainer reads SUPERV_SAVE_DIR and SUPERV_RESUME_PATH",
    # policy
    MINIMAL + "policy:\n  stop_grace: 5\n": "job.yaml:5: policy.stop_grace: unknown key; valid: "
    "backoff_s, gather_limit_s, gather_s, hang_factor, hang_floor_s, orphan_s, "
    "restarts_without_progress, silent_s, start_limit_s, stop_grace_s; did you mean stop_grace_s?",
    MINIMAL + "policy: {silent_s: 0.5}\n": "job.yaml:4: policy.silent_s: expected a number from "
    "1.5 to 600 s, got 0.5",
    MINIMAL + "policy: {silent_s: .nan}\n": "job.yaml:4: policy.silent_s: expected a number from "
    "1.5 to 600 s, got .nan",
    MINIMAL + "policy: {backoff_s: []}\n": "job.yaml:4: policy.backoff_s: expected a list of "
    "numbers from 0 to 86400 s with at least one item, got an empty list",
    MINIMAL + "policy: {backoff_s: [0, -1]}\n": "job.yaml:4: policy.backoff_s[1]: expected a "
    "number from 0 to 86400 s, got -1",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=range(len(MISTAKES)))
def test_a_mistake_is_one_exact_line(text, message):
    assert error_of(parse, text) == message


@pytest.mark.parametrize("option", OWNED)
def test_options_that_superv_owns_are_refused(option):
    message = error_of(parse, MINIMAL + f"slurm: {{{option}: 1}}\n")
    assert message == f"job.yaml:4: slurm.{option}: cannot be set here: {OWNED[option]}"


@pytest.mark.parametrize("depth", [*range(100, 600, 50), 5000])
def test_deep_nesting_is_an_error(depth):
    assert error_of(parse, "a: " + "[" * depth + "]" * depth) in (
        "job.yaml:1: nested too deeply",
        "job.yaml:1: a: unknown key; valid: checkpoints, launcher, name, nodes, policy, preflight, "
        "progress, slurm, spares, trainer",
    )


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda p: None, "{p}: no such file"),
        (lambda p: p.mkdir(), "{p}: is not a regular file"),
        (lambda p: p.write_bytes(b"name: a\nx: \xff\n"), "{p}:2: not UTF-8 text; save the file as "
         "UTF-8"),
        (lambda p: p.write_text("#" * 300_000), "{p}: larger than 256 KiB; is this the right "
         "file?"),
        (lambda p: p.symlink_to(p), "{p}: no such file"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path, prepare, message):
    path = tmp_path / "job.yaml"
    prepare(path)
    assert error_of(load_job, path) == message.format(p=path)


def test_a_name_that_no_file_can_have():
    assert error_of(load_job, Path("a\0b")) == "'a\\x00b': no such file"
    assert error_of(load_job, Path("x" * 300)) == "x" * 300 + ": cannot be read: File name too long"


# --- site.yaml ------------------------------------------------------------------------------


def site_of(tmp_path, env, **files):
    """Load from a tree: `system`, `user` and `named` hold the three files' text."""
    paths = {
        "system": tmp_path / "etc/site.yaml",
        "user": tmp_path / "config/superv/site.yaml",
        "named": tmp_path / "named.yaml",
    }
    for name, text in files.items():
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        paths[name].write_text(text)
    return load_site(env, paths["system"])


def test_site_defaults(tmp_path):
    site = site_of(tmp_path, {"HOME": "/home/ann"})
    assert site.state_dir == Path("/home/ann/.local/state/superv")
    assert (site.node_dir, site.engine_address, site.log_cap_mb) == (Path("/tmp"), None, 256)
    assert site.engine_ports == PortRange(first=20000, last=29999)
    assert site.rank_ports == PortRange(first=30000, last=32000)


def test_state_follows_xdg(tmp_path):
    env = {"HOME": "/home/ann", "XDG_STATE_HOME": "/state"}
    assert site_of(tmp_path, env).state_dir == Path("/state/superv")
    env["XDG_STATE_HOME"] = "relative"
    assert site_of(tmp_path, env).state_dir == Path("/home/ann/.local/state/superv")


def test_later_site_files_win_key_by_key(tmp_path):
    env = {"XDG_CONFIG_HOME": f"{tmp_path}/config", "SUPERV_SITE": f"{tmp_path}/named.yaml"}
    site = site_of(
        tmp_path,
        env,
        system="{state_dir: /s, node_dir: /local, log_cap_mb: 1}",
        user="{log_cap_mb: 2, engine_address: bond0}",
        named="{log_cap_mb: 3}",
    )
    assert (site.state_dir, site.node_dir) == (Path("/s"), Path("/local"))
    assert (site.engine_address, site.log_cap_mb) == ("bond0", 3)


def test_the_user_file_is_found_below_home(tmp_path):
    folder = tmp_path / ".config/superv"
    folder.mkdir(parents=True)
    (folder / "site.yaml").write_text("log_cap_mb: 7")
    assert load_site({"HOME": str(tmp_path)}, tmp_path / "none").log_cap_mb == 7


def test_site_paths_start_at_their_file(tmp_path):
    site = site_of(tmp_path, {}, system="{state_dir: state}")
    assert site.state_dir == tmp_path / "etc/state"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engine_ports: 80", '{f}:1: engine_ports: expected a range of ports from 1024 to 65535, '
         'as 20000-29999, got 80'),
        ("engine_ports: 30-20", '{f}:1: engine_ports: expected a range of ports from 1024 to '
         '65535, as 20000-29999, got "30-20"'),
        ("rank_ports: 30000-30003", '{f}:1: rank_ports: expected at least 16 ports, got '
         '"30000-30003"'),
        ("rank_ports: 29000-31000", "{f}: engine_ports 20000-29999 and rank_ports 29000-31000 "
         "overlap; move one"),
        ("log_cap_mb: 1 GB", '{f}:1: log_cap_mb: expected a whole number from 1 to 1000000 MB, '
         'got "1 GB"'),
        ("engine_address: a b", '{f}:1: engine_address: expected an address, a host name or an '
         'interface, got "a b"'),
        ("mounts: []", "{f}:1: mounts: unknown key; valid: " + ", ".join(sorted(keys(Site)))),
    ],
)  # fmt: skip
def test_site_mistakes(tmp_path, text, message):
    file = tmp_path / "etc/site.yaml"
    env = {"HOME": "/home/ann"}
    assert error_of(lambda: site_of(tmp_path, env, system=text)) == message.format(f=file)


def test_a_site_file_that_is_named_must_exist(tmp_path):
    env = {"HOME": "/h", "SUPERV_SITE": f"{tmp_path}/named.yaml"}
    assert error_of(lambda: site_of(tmp_path, env)) == f"{tmp_path}/named.yaml: no such file"


def test_without_a_home_the_state_needs_a_place():
    system = Path("/none/site.yaml")
    root = os.geteuid() == 0
    if root:
        assert load_site({}, system).state_dir == Path("/var/lib/superv")
        os.seteuid(65534)
    try:
        error = error_of(lambda: load_site({}, system))
    finally:
        if root:
            os.seteuid(0)
    assert error == f"state_dir: no home directory is known; set HOME, or state_dir in {system}"


# --- documentation, examples, junk ------------------------------------------------------------


def test_the_committed_page_is_current():
    committed = (ROOT / "docs/configuration.md").read_text()
    assert committed == page(), "run: python -m supervisor.config > docs/configuration.md"


def test_the_page_is_what_the_command_prints():
    command = [sys.executable, "-m", "supervisor.config"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == page()


def test_the_examples_load():
    job = load_job(ROOT / "examples/job-60-nodes.yaml")
    assert (job.nodes, job.spares, job.trainer.ranks_per_node) == (60, 3, 8)
    example = {"HOME": "/home/ann", "SUPERV_SITE": str(ROOT / "examples/site.yaml")}
    assert load_site(example, Path("/nonexistent")).engine_address == "bond0"


def test_types_are_imported_without_yaml():
    code = "import sys, supervisor.config; sys.exit('yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


KEYS = st.sampled_from(
    [
        *(name for cls in (Job, Trainer, Progress, Checkpoints, Policy) for name in keys(cls)),
        *("time", "exclusive", "partition"),
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=4)
    | st.dates()
    | st.sampled_from(["demo", "torchtitan", "plain", "env", "~x/y", "{save_dir}", "(?P<step>"])
)
JUNK = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=20,
)
SECTIONS = ["slurm", "trainer", "progress", "checkpoints", "policy"]


@settings(deadline=None, max_examples=300)
@given(junk=st.dictionaries(KEYS | st.text(max_size=5), JUNK, max_size=6))
def test_junk_loads_or_is_a_user_error(junk):
    loads_or_user_error(yaml.safe_dump(junk))


@settings(deadline=None, max_examples=300)
@given(sections=st.dictionaries(st.sampled_from(SECTIONS), JUNK, max_size=3))
def test_junk_in_a_good_file_loads_or_is_a_user_error(sections):
    good = {"name": "demo", "nodes": 2, "trainer": {"module": "t"}}
    loads_or_user_error(yaml.safe_dump(good | sections, allow_unicode=True))


@settings(deadline=None, max_examples=300)
@given(
    text=st.text(max_size=80) | st.text(alphabet=" \n\t:-[]{}?&*!|>'\"#%@`,ab0\\uU", max_size=60)
)
def test_any_text_loads_or_is_a_user_error(text):
    loads_or_user_error(text)
    loads_or_user_error(MINIMAL + text)


def loads_or_user_error(text: str) -> None:
    try:
        job = parse(text)
    except UserError as error:
        assert len(str(error).splitlines()) == 1, repr(str(error))
    else:
        assert parse(text) == job
        for word in (*job.trainer.argv(), *job.trainer.env.values(), *job.slurm.values()):
            assert "\0" not in word
            word.encode()
