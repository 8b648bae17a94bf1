"""What Slurm's commands say when they fail: no answer, a refusal, or words that are not known here.

Texts are those of slurm_errno.c, of the commands and of their plugins in 20.11 to 26.05, in lower
case; each is looked for within what was said. tests/unit/test_slurm_answers.py has whole samples.
"""

from __future__ import annotations

from collections.abc import Sequence

from supervisor.core.errors import RefusalError, UserError

# Slurm is away, or this machine can't reach it: nothing was said about what was asked.
AWAY = (
    # slurmctld does not answer, or not now
    *("socket timed out", "unable to contact", "unable to connect", "connection refused"),
    *("connection failure", "connection timed out", "connection reset", "connection aborted"),
    *("shutdown failure", "message receive failure", "message send failure", "broken pipe"),
    *("zero bytes were transmitted", "transport endpoint", "temporarily unable", "standby mode"),
    *("in standby", "unexpected message", "insane message length", "send/recv operation"),
    *("rate limit", "rpc limit", "please retry", "try again", "shutting down", "reconfig"),
    *("incompatible versions", "protocol version", "no controllers", "lost connection"),
    # accounting does not
    *("slurmdbd", "persistent connection", "database"),
    # no way there, or no name for it
    *("no route to host", "host is down", "network is unreachable", "network is down"),
    *("unable to resolve", "unknown host", "temporary failure in name", "name or service not"),
    *("addrinfo", "dns srv", "resolution failure"),
    # no configuration: a configless client whose slurmctld is away, a file system that is
    *("configuration source", "fetch_config", "cannot stat file", "unable to process config"),
    *("stale file handle", "input/output error"),
    # munge, sackd or the key is away; a library or a plugin is being replaced
    *("munge", "authentication", "credential", "sackd", "sack_", "auth_g_", "auth_p_"),
    *("plugin_load", "cannot create context", "cannot find", "failed to initialize", "dlopen"),
    "shared librar",
    # no descriptor, memory or process is left here, or there
    *("too many open files", "cannot allocate memory", "no buffer space available"),
    "resource temporarily unavailable",
)
UNCONFIGURED = "configuration source"

# sbatch's refusals (slurm/slurm_errno.h, and its own checks of options): text → option to fix.
REFUSALS = (
    ("partition", "partition"),
    ("node name", "nodelist or exclude"),
    ("--time", "time"),
    ("time limit", "time"),
    ("(gres)", "gres"),
    ("qos", "qos"),
    ("account", "account"),
    ("feature", "constraint"),
    ("--mem", "mem"),
    ("memory", "mem"),
    ("reservation", "reservation"),
    ("license", "licenses"),
    ("dependency", "dependency"),
    ("node configuration", "gres, constraint or mem"),
    ("node count", "nodes (of the job itself)"),
    ("policy", "account, qos or time"),
    ("option", ""),
)

_SUBMISSION = "submission failed:"


def is_away(error: str) -> bool:
    """Whether a failed command said that Slurm did not answer.

    Of a submission the reason at the end of the line counts: before it, sites print advice of
    their own, with whatever words.
    """
    lower = error.lower()
    if _SUBMISSION in lower:
        lower = lower.rpartition(_SUBMISSION)[2].partition("\n")[0]
    return any(words in lower for words in AWAY)


def refusal(error: str, argv: Sequence[str]) -> UserError:
    """What sbatch said on standard error, as one line that names the option to fix.

    A RefusalError where it is one of those that are known; else asking again may help.
    """
    lines = error.strip().splitlines() or ["it did not say why"]
    message = next((line for line in reversed(lines) if "error:" in line), lines[0])
    lower = message.lower()
    said = message.removeprefix("sbatch: ").removeprefix("error: ")
    said = said.removeprefix("Batch job submission failed: ").strip()
    option = next((option for text, option in REFUSALS if text in lower), None)
    given = [word for word in argv if option and word.startswith(tuple(_dashed(option)))]
    where = f"slurm: {option}" if option else "slurm"
    shown = f" (given: {' '.join(given)})" if given else ""
    kind = UserError if option is None else RefusalError
    return kind(f"{where}: Slurm refused the job: {said}{shown}; fix it and launch again")


def _dashed(options: str) -> list[str]:
    return [f"--{word}=" for word in options.replace(",", " ").split() if word not in {"or", "of"}]
