"""The rendered submission: compared whole, checked by shellcheck, and hostile values stay values.

After a wanted change: UPDATE_GOLDEN=1 pytest tests/golden, and read the diff.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import jinja2
import pytest

from launchers.sbatch import Sbatch
from sbatch_templates import quote, render
from supervisor.core.errors import UserError
from supervisor.core.ports import LaunchSpec, Plan

FILES = Path(__file__).parent / "files"
HOSTILE = [
    "two words",
    'it\'s "quoted"',
    "$(touch /tmp/superv-golden-pwned) `id` $HOME ${x:-y}",
    "line\nline",
    "{{ loop }} {# no #} {% raw %}",
    "ünïcödé ✓ \\",
    "*",
    "-rf",
    "",
    "EOF\n)",
    "'; exit 0; '",
]


def plan(*agent: str, **given: object) -> Plan:
    spec = {
        "job_name": "sv-moe-100b-0",
        "nodes": 63,
        "slurm": {"partition": "train", "gres": "gpu:8", "time": "14-00:00:00", "nice": "false"},
        "exclude": ("n9", "n07", "n08"),
        "agent_argv": agent or ("/opt/superv/bin/superv", "agent", "--run", "moe-100b"),
        "folder": "/tmp/superv-1000-00112233445566778899",
        **given,
    }
    return Sbatch().plan(LaunchSpec(**spec))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["argv.txt", "allocation.sh"])
def test_submission_is_as_recorded(name: str) -> None:
    made = {"argv.txt": "\n".join(plan().argv) + "\n", "allocation.sh": plan().script}[name]
    if os.environ.get("UPDATE_GOLDEN"):
        (FILES / name).write_text(made)
    assert made == (FILES / name).read_text()


def check(script: str, shell: str) -> None:
    for argv in (["shellcheck", f"--shell={shell}", "-"], [shell, "-n"]):
        done = subprocess.run(argv, input=script, text=True, capture_output=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_scripts_are_clean() -> None:
    check(plan().script, "bash")
    check(render("agent_loop.sh"), "sh")


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_are_clean_and_arrive_as_they_are(value: str) -> None:
    script = plan("/bin/agent", value, "--last").script
    check(script, "bash")
    line = script.index("agent=(")
    words = script[script.rindex("\n", 0, line) + 1 : script.index("step=(")]
    done = subprocess.run(
        ["bash", "-c", words + 'printf "%s\\0" "${agent[@]}"'],
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert done.stdout.split("\0")[3:-1] == ["superv-agent", "/bin/agent", value, "--last"]
    assert done.stderr == ""
    assert not Path("/tmp/superv-golden-pwned").exists()


@pytest.mark.parametrize("value", HOSTILE)
def test_options_stay_one_word_of_argv(value: str) -> None:
    made = plan(slurm={"comment": value})
    assert f"--comment={value}" in made.argv
    assert len(made.argv) == len(plan(slurm={"comment": "x"}).argv)


def test_values_that_no_argument_can_carry() -> None:
    with pytest.raises(ValueError, match="NUL"):
        plan("a\0b")
    with pytest.raises(TypeError, match="neither text nor a number"):
        quote(None)  # type: ignore[arg-type]
    with pytest.raises(jinja2.UndefinedError, match="path"):
        render("allocation.sh", loop="x")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"nodes": "3"}, "slurm: nodes: write nodes and spares"),
        ({"p": "train"}, "'p': no sbatch option"),
        ({"--partition": "train"}, "'--partition': no sbatch option"),
        ({"a b": "c"}, "'a b': no sbatch option"),
        ({"batch": "x"}, "'batch': no sbatch option"),
    ],
)
def test_options_that_are_refused(given: dict[str, str], says: str) -> None:
    with pytest.raises(UserError) as error:
        plan(slurm=given)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "a b", "a,b", "-x", "a/b", "ü", "x" * 129])
def test_job_names_that_squeue_could_not_find_again(name: str) -> None:
    with pytest.raises(UserError, match="job name"):
        plan(job_name=name)


def test_the_whole_node_is_asked_for_unless_the_user_says_otherwise() -> None:
    assert {"--exclusive", "--mem=0"} <= set(plan().argv)
    shared = plan(slurm={"exclusive": "false", "mem": "4G"}).argv
    assert [word for word in shared if word.startswith(("--exclusive", "--mem"))] == ["--mem=4G"]


# --- the loop that keeps an agent alive, run for real ---


def loop(tmp_path: Path, agent: str) -> subprocess.Popen[str]:
    (tmp_path / "agent").write_text(f"#!/bin/sh\ncd {tmp_path}\necho $$ >> starts\n{agent}\n")
    (tmp_path / "agent").chmod(0o755)
    argv = ["sh", "-c", render("agent_loop.sh"), "superv-agent", str(tmp_path / "agent"), "a b"]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path, lines: int, process: subprocess.Popen[str]) -> list[str]:
    while True:
        seen = path.read_text().split() if path.exists() else []
        if len(seen) >= lines:
            return seen
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"the loop ended with {process.returncode} after {seen}")


@pytest.mark.parametrize(("code", "says"), [(0, ""), (75, "another agent is running here")])
def test_loop_ends_when_the_agent_is_told_to_leave(tmp_path: Path, code: int, says: str) -> None:
    process = loop(tmp_path, f"exit {code}")
    out, _ = process.communicate(timeout=30)
    assert process.returncode == code
    assert says in out
    assert len((tmp_path / "starts").read_text().split()) == 1


def test_loop_starts_a_killed_agent_again_with_its_arguments(tmp_path: Path) -> None:
    process = loop(tmp_path, 'echo "$1" >> args; [ -e second ] && exit 0; touch second; kill -9 $$')
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "the agent ended with 137; starting it again in 1 s" in out
    assert (tmp_path / "args").read_text() == "a b\na b\n"


def test_loop_passes_sigterm_on_and_ends_after_the_agent(tmp_path: Path) -> None:
    process = loop(
        tmp_path,
        "trap 'sleep 0.3; touch saw-term; exit 1' TERM; touch ready; while :; do sleep 0.05; done",
    )
    wait_for(tmp_path / "starts", 1, process)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # Slurm and the batch script may both send it
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert (tmp_path / "saw-term").exists()
    assert len((tmp_path / "starts").read_text().split()) == 1


def test_loop_ends_in_its_pause_too(tmp_path: Path) -> None:
    process = loop(tmp_path, "exit 3")
    wait_for(tmp_path / "starts", 3, process)  # the next pause is 4 s
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
