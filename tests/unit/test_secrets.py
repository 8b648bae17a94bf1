"""A secret of job.yaml's env stands in no error, and in nothing that a launch would print."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from supervisor.cli import cli
from supervisor.config import parse_job
from supervisor.config.secret_file import read_secrets
from supervisor.core.errors import UserError
from supervisor.core.secret import looks_secret, masked, secret_values, without
from supervisor.doctor.node_probe import told_env

JOB = "name: n\nnodes: 1\ntrainer:\n  module: t\n"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("WANDB_API_KEY", True),
        ("HF_TOKEN", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("PGPASSWORD", True),
        ("db_passwd", True),
        ("MYSQL_PWD", True),
        ("GOOGLE_APPLICATION_CREDENTIALS", True),
        ("SENTRY_DSN", True),
        ("PWD", False),
        ("NCCL_IB_PKEY", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("MAX_TOKENS", False),
        ("NCCL_DEBUG", False),
        ("MONKEY", False),
        ("PYTHONPATH", False),
    ],
)
def test_names(name: str, secret: bool) -> None:
    assert looks_secret(name) is secret


def test_a_password_in_a_url_is_one() -> None:
    assert looks_secret("https_proxy", "http://me:hunter2@proxy:3128")
    assert not looks_secret("https_proxy", "http://proxy:3128/a@b")


def test_short_values_and_identities_stay() -> None:
    """`1` is in every line; a node's name is what events are told apart by."""
    assert secret_values({"A_TOKEN": "1", "B_TOKEN": "local-1"}) == {"local-1"}
    event = {"node": "local-1", "exit": {"node": "local-1", "tail": ("on local-1", "x")}}
    assert masked({"local-1"}, event) == {
        "node": "local-1",
        "exit": {"node": "local-1", "tail": ["on [hidden]", "x"]},
    }
    assert without({"secret", "secret-longer"}, "secret-longer") == "[hidden]"


# Ways to write a variable, right and wrong ones; S is the secret.
WAYS = (
    *("env: {T: S}", 'env: {T: "S"}', "env: {T: {secret: S}}", "env: {T: {secret: [S]}}"),
    *("env: {T: {S}}", "env: {T: {S: 1}}", "env: {T: [S]}", "env: {T=S}", "env: {T=S: 1, T=S: 2}"),
    *("env: T=S", "env: [T=S]", "env: {T: S, T: S}", "env: {RANK: S}", "env: {A-B: S}"),
    *("env: {T: *S}", "env: {T: !S x}", "env: {T: &S }", "env: {T: S{nod_rank}}", "env: {T: %S}"),
    *('env: {T: "S\\0"}', 'env: {T: "S\\q"}', "env: {T: `S}", "env: {T: @S}", "env: {T: 'S}"),
    *("env:\n    T: !!python/name:S\n", "env:\n    T: S: x", "env: {T: !x!S y}", "env: {T: >S}"),
    *("env: {T: S\n  U: }", "T: S", "env: {T: [S, &S a, *S]}", "env: {T: &S a, U: &S b}"),
)


@given(
    way=st.sampled_from(WAYS),
    name=st.sampled_from(["API_KEY", "OTHER", "DB_PASSWORD"]),
    secret=st.from_regex(r"\A[A-Za-z][A-Za-z0-9]{9,40}\Z"),
)
def test_no_error_quotes_a_value(way: str, name: str, secret: str) -> None:
    meant = {"T": name, "S": secret}
    text = f"{JOB}  {re.sub('[TS]', lambda letter: meant[letter[0]], way)}\n"
    try:
        parse_job(text, Path("/x/job.yaml"))
    except UserError as error:
        assert secret not in str(error), text


def dry_run(tmp_path: Path, env: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    job, site = tmp_path / "job.yaml", tmp_path / "site.yaml"
    job.write_text(f"{JOB}  env: {env}\nlauncher: local\n")
    site.write_text(f"state_dir: {tmp_path}/state\nnode_dir: {tmp_path}\n")
    monkeypatch.setenv("SUPERV_SITE", str(site))
    done = CliRunner().invoke(cli, ["launch", "--dry-run", str(job)], standalone_mode=False)
    if isinstance(done.exception, UserError):
        return 2, done.output + str(done.exception)
    return done.exit_code, done.output


def test_a_dry_run_hides_secrets_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text("zq-from-a-file\n")
    env = f"{{NCCL_DEBUG: INFO, A_KEY: zq-by-name, HF: {{secret: {file}}}}}"
    code, told = dry_run(tmp_path, env, monkeypatch)
    assert code == 0, told
    assert "zq-" not in told
    assert {"NCCL_DEBUG=INFO", "A_KEY='[hidden]'", f"HF='[hidden] from {file}'"} <= set(
        told.splitlines()
    )


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        (b"zq", 0o640, "others could read or write it; make it yours: chmod 600"),
        (b"\n", 0o600, "empty"),
        (b"zq\xff", 0o600, "not UTF-8 text"),
        (b"zq\0", 0o600, "holds a character that cannot be passed on"),
        (b"zq" * 65_536, 0o600, "larger than 64 KiB"),
        (None, 0o600, "No such file"),
    ],
)
def test_files_that_are_refused(
    tmp_path: Path, content: bytes | None, mode: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
        file.chmod(mode)
    code, told = dry_run(tmp_path, f"{{HF: {{secret: {file}}}}}", monkeypatch)
    assert code == 2
    assert f"trainer.env.HF.secret: {file}: " in told and why in told, told
    assert "zq" not in told


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(UserError, match="is not a regular file"):
        read_secrets({"A": tmp_path / "fifo"})
    with pytest.raises(UserError, match="is not a regular file"):
        read_secrets({"A": tmp_path})


def test_the_doctors_step_carries_none() -> None:
    """srun's standard input crosses the network in plain text."""
    env = "  env:\n    WANDB_API_KEY: abcdefgh\n    NCCL_DEBUG: INFO\n    RANK_IS: '{rank}'\n"
    assert told_env(parse_job(JOB + env, Path("job.yaml"))) == {"NCCL_DEBUG": "INFO"}
