"""What NCCL would see, from processes, scripts and its own files; and the catalogue itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from healthchecks.frame.context import Ctx, Memory
from healthchecks.sources.nccl_facts import facts
from ncclconf.catalogue import NOBODY, catalogue, closest, lookup, version
from ncclconf.environment import Environment, of_node, of_script
from ncclconf.facts import IB
from ncclconf.lint import c_number, lint
from tests.hardware import tree_nics
from tests.hardware.tree import borrowed

SCRIPTS = {
    "export NCCL_DEBUG=INFO": {"NCCL_DEBUG": "INFO"},
    "export NCCL_DEBUG=INFO NCCL_ALGO=Ring # why": {"NCCL_DEBUG": "INFO", "NCCL_ALGO": "Ring"},
    "NCCL_DEBUG=INFO srun python x.py": {"NCCL_DEBUG": "INFO"},
    "mpirun -np 8 -x NCCL_IB_HCA==mlx5_0,mlx5_1 ./x": {"NCCL_IB_HCA": "=mlx5_0,mlx5_1"},
    "#SBATCH --export=ALL,NCCL_DEBUG=INFO,NCCL_ALGO=Tree": {
        "NCCL_DEBUG": "INFO",
        "NCCL_ALGO": "Tree",
    },
    "srun --export ALL,NCCL_DEBUG=WARN ./x": {"NCCL_DEBUG": "WARN"},
    "export NCCL_THREAD_THRESHOLDS='8 16 32 64 64 64'": {
        "NCCL_THREAD_THRESHOLDS": "8 16 32 64 64 64"
    },
    'export NCCL_SOCKET_IFNAME="^docker0,lo"; ./x': {"NCCL_SOCKET_IFNAME": "^docker0,lo"},
    "  # export NCCL_DEBUG=INFO": {},
    "NCCL_DEBUG=WARN\nNCCL_DEBUG=INFO": {"NCCL_DEBUG": "INFO"},
    "export NCCL_DEBUG=\nfoo": {"NCCL_DEBUG": ""},
    "echo $NCCL_DEBUG": {},
    "MY_NCCL_DEBUG=1": {},
    "export PATH=/opt/nccl:$PATH LD_LIBRARY_PATH=x": {},
    "if [ -z x ]; then export NCCL_NET=IB; fi": {"NCCL_NET": "IB"},
    "export NCCL_DEBUG=${NCCL_DEBUG:-INFO}": {"NCCL_DEBUG": "INFO"},
    'export NCCL_DEBUG="${NCCL_DEBUG-INFO}"': {"NCCL_DEBUG": "INFO"},
    ': "${NCCL_DEBUG:=INFO}"': {"NCCL_DEBUG": "INFO"},
    ": ${NCCL_DEBUG:=INFO}\nexport NCCL_DEBUG=${NCCL_DEBUG:-WARN}": {"NCCL_DEBUG": "INFO"},
    "export NCCL_DEBUG=WARN\nexport NCCL_DEBUG=${NCCL_DEBUG:-INFO}": {"NCCL_DEBUG": "WARN"},
    "export NCCL_IB_TIMEOUT=${NCCL_IB_TIMEOUT:=23}": {"NCCL_IB_TIMEOUT": "23"},
    "env NCCL_NET=IB python x": {"NCCL_NET": "IB"},
    "export NCCL_SOCKET_IFNAME='unfinished": {"NCCL_SOCKET_IFNAME": "unfinished"},
}


@pytest.mark.parametrize("text", SCRIPTS)
def test_a_script_sets_what_its_shell_would(text: str) -> None:
    assert {s.name: s.text for s in of_script(text, "job.sh")} == SCRIPTS[text]


def test_a_default_of_a_script_s_own_is_judged_another_name_s_is_not() -> None:
    settings = of_script("A=1\nNCCL_MIN_CTAS=${NCCL_MIN_CTAS:-4}\nNCCL_ALGO=${X:-Ring}\n", "job.sh")
    assert [(s.text, s.known) for s in settings] == [("4", True), ("${X:-Ring}", False)]


def test_what_a_shell_works_out_is_not_judged() -> None:
    settings = of_script("export NCCL_SOCKET_IFNAME=$(ip route)\nNCCL_MIN_CTAS=${X:-a}\n", "job.sh")
    assert [s.known for s in settings] == [False, False]
    from ncclconf.facts import Facts

    seen = lint(Environment.of(settings), Facts())
    assert not [f for f in seen if {*f.hit.names} & {"NCCL_SOCKET_IFNAME", "NCCL_MIN_CTAS"}]


def test_the_environment_goes_before_the_users_file_and_that_before_the_systems(
    tmp_path: Path,
) -> None:
    for place, text in {
        "etc/nccl.conf": "NCCL_DEBUG=INFO\nNCCL_ALGO=Ring\nNCCL_NET=IB\n",
        "home/me/.nccl.conf": "#x\nNCCL_DEBUG=WARN\nNCCL_ALGO=Tree\n",
        "other.conf": "NCCL_ALGO=NVLS\n",
    }.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)

    def seen(variables: dict[str, str]) -> dict[str, tuple[str, str]]:
        env = of_node(variables, "shell", tmp_path, "/home/me")
        return {name: (one.text, one.where) for name, one in env.settings.items()}

    assert seen({"NCCL_DEBUG": "TRACE"}) == {
        "NCCL_DEBUG": ("TRACE", "shell"),
        "NCCL_ALGO": ("Tree", "/home/me/.nccl.conf:3"),
        "NCCL_NET": ("IB", "/etc/nccl.conf:3"),
    }
    named = seen({"NCCL_CONF_FILE": "/other.conf"})
    assert named["NCCL_ALGO"] == ("NVLS", "/other.conf:1")
    assert named["NCCL_DEBUG"] == ("INFO", "/etc/nccl.conf:1")  # ~/.nccl.conf is not read then


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[("0", 0), ("12", 12), ("-2", -2), (" 7", 7), ("0x60", 96), ("010", 8), ("+3", 3)],
        *[("", None), ("true", None), ("4M", None), ("1.5", None), ("08", None), ("7 ", None)],
    ],
)
def test_numbers_are_read_as_c_reads_them(text: str, number: int | None) -> None:
    assert c_number(text) == number


def test_the_catalogue_says_of_every_variable_what_is_known() -> None:
    known = catalogue()
    assert len(known) > 400
    for name, v in known.items():
        assert v.meaning and v.owner and v.kind in ("correctness", "performance", "debug"), name
        assert not (v.since and v.until) or v.since < v.until, name
        assert v.type != NOBODY or not v.evidence, name
        if v.is_number and v.evidence and c_number(v.default) is not None:
            assert v.accepts(c_number(v.default) or 0) or int(v.default) < 0, name


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *[("NCCL_DEBUG", "NCCL_DEBUG"), ("NCCL_UCX_TLS", "NCCL_UCX_*"), ("NCCL_UCX_", None)],
        *[("NCCL_PROFILE_COLL_POOL_SIZE", "NCCL_PROFILE_*_POOL_SIZE"), ("NCCL_NOTHING", None)],
    ],
)
def test_names_and_families_are_found(name: str, found: str | None) -> None:
    assert (variable.name if (variable := lookup(name)) else None) == found


def test_a_name_that_was_meant_is_told() -> None:
    assert closest("NCCL_SOKET_IFNAME") == "NCCL_SOCKET_IFNAME"
    assert closest("NCCL_TIMEOUTS") != "NCCL_TIMEOUT"  # nobody reads that one


def test_versions() -> None:
    assert version("2.28.3") == (2, 28, 3)
    assert version("") is None
    with pytest.raises(ValueError, match="no version"):
        version("2.28rc1")


def test_a_healthy_node_is_known_by_its_ports_and_gpus() -> None:
    with borrowed() as tree:
        memory = Memory({}, 0.0)
        known = facts(Ctx(root=tree.root, node="", now=0.0, boot_id="", memory=memory), nodes=60)
    fabric = known.fabric()
    assert {h.device for h in fabric} == {*tree_nics.FABRIC}
    assert {h.link_layer for h in fabric} == {IB} and known.only_infiniband
    assert "B200" in (known.gpus or "")
    assert known.gpudirect and known.virtual is not None
    assert {h.role for h in known.hcas or ()} == {"fabric", "storage", "lpf"}


def superv(*argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "supervisor.cli", "nccl", *argv]
    given = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, env=given, check=False)


def test_errors_end_with_1_and_are_told_with_file_and_line(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nexport NCCL_P2P_DISABLE=true NCCL_DEBUG=WARN\n")
    done = superv("lint", "--env", str(script), "--json")
    [found] = json.loads(done.stdout)["findings"]
    assert done.returncode == 1
    assert (found["rule"], found["where"]) == ("not-a-number", f"{script}:2")
    assert superv("lint", env={"NCCL_DEBUG": "WARN"}).returncode == 0


JOB = "name: a\nnodes: 2\ntrainer:\n  module: t\n  env: {{{}}}\n"
BAD = "NCCL_P2P_DISABLE: 'true', NCCL_DEBUG: WARN"


@pytest.mark.parametrize("how", [(), ("--env",), ("--job",)])
@pytest.mark.parametrize("name", ["job.yaml", "n2", "job.sh"])
def test_a_job_is_told_by_its_content(tmp_path: Path, name: str, how: tuple[str, ...]) -> None:
    file = tmp_path / name
    file.write_text(JOB.format(BAD))
    done = superv("lint", *how, str(file), "--json")
    assert [f["rule"] for f in json.loads(done.stdout)["findings"]] == ["not-a-number"]
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("text", "nothing"),
    [
        ("#!/bin/sh\necho x\n", True),
        ("NCCL_DEBUG: INFO\n", True),  # YAML, and no job
        ("", True),
        (JOB.format(""), True),
        ("export NCCL_DEBUG=WARN\n", False),
        ("#!/bin/sh\nNCCL_DEBUG=WARN srun x <<END\ntrainer: x\nEND\n", False),
        (JOB.format("NCCL_DEBUG: WARN"), False),
    ],
)
def test_a_file_in_which_nothing_was_understood_is_not_cleared(
    tmp_path: Path, text: str, nothing: bool
) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    done = superv("lint", str(file))
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert (f"no variable was found in {file}, so nothing was judged" in said) is nothing
    assert ("1 variable: " in said) is not nothing
    assert max(map(len, done.stdout.splitlines())) <= 100
    document = json.loads(superv("lint", str(file), "--json").stdout)
    assert bool(document["nothing_in"]) is nothing


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("lint", "a", "--job", "b"), "give one"),
        (("lint", "/nonexistent"), "No such file"),
        (("lint", "--env", "/nonexistent"), "No such file"),
        (("lint", "--pid", "4194304"), "no such process"),
        (("lint", "--nccl", "new"), "no version"),
        (("lint", "--env", "a", "--pid", "1"), "give one"),
        (("explain", "NCCL_DEBUGG"), "did you mean NCCL_DEBUG?"),
        (("vars", "zzz"), "superv nccl vars lists all"),
    ],
)
def test_mistakes_are_one_line_and_2(argv: tuple[str, ...], says: str) -> None:
    done = superv(*argv)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
