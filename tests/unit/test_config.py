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

from healthchecks.frame import own
from healthchecks.frame.settings import of_site
from supervisor.config import (
    Checkpoints,
    Job,
    PortRange,
    ProgressPatterns,
    Ssh,
    Trainer,
    load_job,
    load_site,
    look_at_job,
    parse_job,
)
from supervisor.config.renamed import RENAMED
from supervisor.config.schema import keys
from supervisor.config.slurm import OWNED
from supervisor.config.trainer import NAMED_PROGRESS
from supervisor.core.errors import UserError
from supervisor.core.policy import Policy
from supervisor.hooks import torchtitan

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


TORCHX = MINIMAL + "launcher: torchx\n"


def test_torchx_has_slurms_options_on_slurm():
    job = parse(TORCHX + "torchx: {scheduler: slurm}\nslurm: {partition: main}\n")
    assert (job.slurm, job.on_slurm, job.on_this_machine) == ({"partition": "main"}, True, False)
    job = parse(TORCHX + "torchx: {scheduler: local_cwd, args: {prepend_cwd: yes}}\n")
    assert (job.on_slurm, job.on_this_machine) == (False, True)
    assert job.torchx is not None and job.torchx.args == {"prepend_cwd": "yes"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("launcher: torchx\n", r"launcher: .* write torchx: \{scheduler: slurm\}"),
        ("torchx: {scheduler: slurm}\n", "torchx: has no effect with launcher: sbatch"),
        (
            "launcher: torchx\ntorchx: {scheduler: kubernetes}\n",
            "torchx.scheduler: expected one of local_cwd, slurm, got .kubernetes",
        ),
        (
            "launcher: torchx\ntorchx: {scheduler: slurm, args: {partition: main}}\n",
            "torchx.args.partition: write it below `slurm:`",
        ),
        (
            "launcher: torchx\ntorchx: {scheduler: local_cwd}\nslurm: {partition: main}\n",
            "slurm: has no effect with torchx: local_cwd",
        ),
    ],
)
def test_what_is_said_of_a_launcher_that_is_not_used(text, says):
    assert re.search(says, error_of(parse, MINIMAL + text))


def test_the_torchtitan_hook_brings_patterns_and_required_keys():
    job = parse(TITAN + "checkpoints: {dir: /c}\n")
    assert job.progress == NAMED_PROGRESS["torchtitan"]
    assert job.checkpoints is not None
    assert job.checkpoints.required == torchtitan.STATE_KEYS


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
        ("false", {"exclusive": "false"}),
    ],
)
def test_slurm_flags(written, passed):
    assert parse(MINIMAL + f"slurm: {{exclusive: {written}}}\n").slurm == passed


@pytest.mark.parametrize(
    ("written", "read"), [("true", True), ("yes", True), ("False", False), ('"false"', False)]
)
def test_truth_values(written, read):
    assert parse(HEAD + f"trainer: {{module: t, snapshot: {written}}}\n").trainer.snapshot is read


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


def test_a_mistake_is_one_exact_line():
    """The many others are in tests/golden/test_mistakes.py."""
    message = "job.yaml:2: not valid YAML: a control character"
    assert error_of(parse, "name: a\nx: \x07\n") == message


@pytest.mark.parametrize("option", OWNED)
def test_options_that_superv_owns_are_refused(option):
    message = error_of(parse, MINIMAL + f"slurm: {{{option}: 1}}\n")
    assert message == f"job.yaml:4: slurm.{option}: cannot be set here: {OWNED[option]}"


@pytest.mark.parametrize("depth", [*range(100, 600, 50), 5000])
def test_deep_nesting_is_an_error(depth):
    assert error_of(parse, "a: " + "[" * depth + "]" * depth) in (
        "job.yaml:1: nested too deeply",
        f"job.yaml:1: a: unknown key; valid: {', '.join(sorted(keys(Job)))}; "
        "3 more mistakes: `superv doctor job.yaml` tells all",
    )


def test_all_mistakes_are_told_and_the_rest_is_read(tmp_path):
    """Nested, of several sections, and what is needed: each once, with its line."""
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: Demo\nnodes: 2\nspare: 1\nslurm: {partition: a, nodes: 3, tme: 5}\n"
        "trainer:\n  module: train\n  ranks_per_node: no\n  env: {RANK: 1, A-B: x, OK: 1}\n"
        "preflight: {checks: {xid: 5}}\n"
    )
    job, wrong = look_at_job(path)
    places = [str(error).removeprefix(f"{path}:").split(": ")[:2] for error in wrong]
    assert places == [
        ["1", "name"],
        ["3", "spare"],
        ["4", "slurm.nodes"],
        ["4", "slurm.tme"],
        ["7", "trainer.ranks_per_node"],
        ["8", "trainer.env.RANK"],
        ["8", "trainer.env.A-B"],
        ["9", "preflight.checks.xid"],
    ]
    assert (job.trainer.module, job.nodes, job.trainer.env) == ("train", 2, {"OK": "1"})
    assert job.slurm == {"partition": "a"}
    with pytest.raises(UserError) as caught:
        load_job(path)
    assert str(caught.value).startswith(str(wrong[0]))
    assert str(caught.value).endswith(f"; 7 more mistakes: `superv doctor {path}` tells all")


def test_what_no_trainer_is_left_of(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("name: a\ntrainer: {module: 5, script: x}\n")
    job, wrong = look_at_job(path)
    assert (job.trainer.script.name, len(wrong)) == ("x", 2)  # nodes are missing
    path.write_text("name: a\nnodes: 1\ntrainer: {modul: x}\n")
    job, wrong = look_at_job(path)
    assert (job, len(wrong)) == (None, 1)
    path.write_text("name: [")
    job, (error,) = look_at_job(path)
    assert (job, "not valid YAML" in str(error)) == (None, True)


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
    assert (site.node_dir, site.engine_address, site.log_cap_mb) == (Path("/var/tmp"), None, 256)
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


# --- keys that were renamed ---------------------------------------------------------------------


def test_old_names_lead_to_keys_that_are_there_and_are_none_themselves():
    sections = {"Policy": Policy, "Ssh": Ssh}
    assert set(sections) == set(RENAMED)
    for name, table in RENAMED.items():
        there = keys(sections[name])
        assert set(table.values()) <= set(there) and not set(table) & set(there)
        assert len(set(table.values())) == len(table)


@pytest.mark.parametrize(("old", "new"), RENAMED["Policy"].items())
def test_an_old_name_works_and_is_noted_with_its_place(old, new):
    job = parse(MINIMAL + f"policy:\n  stop_grace_s: 5\n  {old}: 11\n")
    assert getattr(job.policy, new) == 11 and job.policy.stop_grace_s == 5
    assert job.notes == (
        f"job.yaml:6: policy.{old}: called {new} now; the old name works until the next release",
    )
    assert parse(MINIMAL + f"policy: {{{new}: 11}}\n").notes == ()


def test_an_old_name_in_site_yaml(tmp_path):
    site = site_of(tmp_path, {"HOME": "/h"}, system="ssh:\n  most_at_once: 3\n")
    assert site.ssh.max_connections == 3
    assert site.notes == (
        f"{tmp_path}/etc/site.yaml:2: ssh.most_at_once: called max_connections now; the old name "
        "works until the next release",
    )


def test_launch_and_doctor_show_the_note(tmp_path):
    job, site = tmp_path / "job.yaml", tmp_path / "site.yaml"
    job.write_text(MINIMAL + "launcher: local\npolicy: {silent_s: 3}\n")
    site.write_text(f"state_dir: {tmp_path}\nssh: {{most_at_once: 3}}\n")
    env = {**os.environ, "SUPERV_SITE": str(site)}
    for words in (["launch", "--dry-run"], ["doctor"]):
        argv = [sys.executable, "-m", "supervisor.cli", *words, str(job)]
        done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
        said = " ".join(done.stdout.split())  # the doctor wraps
        for note in (f"{job}:5: policy.silent_s: called", f"{site}:2: ssh.most_at_once: called"):
            assert note in said, done


# --- documentation, examples, junk ------------------------------------------------------------


def test_the_examples_load():
    job = load_job(ROOT / "examples/job-60-nodes.yaml")
    assert (job.nodes, job.spares, job.trainer.ranks_per_node) == (60, 3, 8)
    example = {"HOME": "/home/ann", "SUPERV_SITE": str(ROOT / "examples/site.yaml")}
    assert load_site(example, Path("/nonexistent")).engine_address == "bond0"
    example["SUPERV_SITE"] = str(ROOT / "examples/site-b200.yaml")
    settings = of_site(load_site(example, Path("/nonexistent")))  # raises what a check would
    own.register({})
    assert {"ports", "own_checks", "gpu.count"} <= settings.keys()


def test_types_are_imported_without_yaml():
    code = "import sys, supervisor.config; sys.exit('yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


KEYS = st.sampled_from(
    [
        *(
            name
            for cls in (Job, Trainer, ProgressPatterns, Checkpoints, Policy)
            for name in keys(cls)
        ),
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


def test_paths_are_told_without_their_parents_unless_a_link_stands_before(tmp_path: Path) -> None:
    (tmp_path / "far" / "inner").mkdir(parents=True)
    (tmp_path / "jobs" / "a").mkdir(parents=True)
    (tmp_path / "jobs" / "link").symlink_to(tmp_path / "far" / "inner")
    file = tmp_path / "jobs" / "a" / ".." / "a" / "job.yaml"
    text = (
        "name: a\nnodes: 1\ntrainer: {script: ../../t.py, python: ../link/../py}\n"
        "checkpoints: {dir: ../ck, handoff: env}\n"
    )
    job = parse_job(text, file)
    assert job.path == tmp_path / "jobs/a/job.yaml" and job.checkpoints is not None
    assert (job.trainer.workdir, job.trainer.script) == (tmp_path / "jobs/a", tmp_path / "t.py")
    assert job.checkpoints.dir == tmp_path / "jobs/ck"
    assert str(job.trainer.python) == f"{tmp_path}/jobs/link/../py"  # which is far/py
