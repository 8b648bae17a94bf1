"""What Slurm's commands say when they fail: no answer, a refusal, or words that are not known here.

Texts are those of slurm_errno.c, of the commands and of their plugins in 20.11 to 26.05, in lower
case; each is looked for within what was said. tests/unit/test_slurm_answers.py has whole samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from supervisor.core.errors import RefusalError, TransientError, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class AwayCause:
    """Why nothing was said about what was asked, and what a person does about it."""

    what: str
    fix: str
    texts: tuple[str, ...]
    seen: str  # in the lab, by making it so; else where the texts are from

    def fits(self, said: str) -> bool:
        """Whether it is what was said."""
        return any(text in said.lower() for text in self.texts)


# The first that fits counts: what keeps a client from reaching slurmctld comes before the last line
# that it prints, which is the same for many causes.
AWAY = (
    AwayCause(
        what="there is no slurm.conf here, nor a server that gives one",
        fix="set SLURM_CONF to the cluster's slurm.conf, or use a login node",
        texts=(
            *("cannot stat file", "configuration source", "fetch_config", "dns srv"),
            *("resolve_ctls_from_dns_srv", "stale file handle"),
        ),
        # A file that is missing is waited for: for 60 s, longer than any deadline here.
        seen="22.05, 24.11, 26.05: SLURM_CONF names no file (rc 1 after 60 s); no file (rc 1)",
    ),
    AwayCause(
        what="slurm.conf can't be used on this machine",
        fix="its error stands before this one: run `sinfo` here; the file must fit this Slurm",
        texts=(
            *("unable to process config", "parsing error", "plugindir"),
            *("plugin_load", "cannot create context", "cannot find", "failed to initialize"),
            *("dlopen", "shared librar"),
        ),
        seen="22.05, 24.11, 26.05: an unknown key, a PluginDir that is not there (rc 1)",
    ),
    AwayCause(
        what="munge (or sackd) does not vouch for this user",
        fix="see whether munged runs here (`munge -n`), and clocks and key are the cluster's",
        texts=("munge", "authentication", "credential", "sackd", "sack_", "auth_g_", "auth_p_"),
        seen="22.05, 24.11, 26.05: no socket (rc 1; scancel 239, sbcast 255, on 26.05 1)",
    ),
    AwayCause(
        what="the name of slurmctld's machine can't be resolved",
        fix="see `getent hosts` with the SlurmctldHost of slurm.conf; DNS or /etc/hosts lacks it",
        texts=(
            *("addrinfo", "unable to resolve", "unknown host", "temporary failure in name"),
            *("name or service not", "resolution failure"),
        ),
        seen="22.05 (rc 1 after 10 s, scancel 11), 24.11, 26.05 (after more than 14 s)",
    ),
    AwayCause(
        what="Slurm's accounting does not answer",
        fix="see whether slurmdbd runs",
        texts=("slurmdbd", "persistent connection", "persistinit", "database"),
        seen="sources of sacct and slurmdbd, 20.11 to 26.05",
    ),
    AwayCause(
        what="this machine has no descriptor, memory or process left",
        fix="see `ulimit -a` and `free`",
        texts=(
            *("too many open files", "cannot allocate memory", "no buffer space available"),
            "input/output error",
        ),
        seen="errno(3)",
    ),
    AwayCause(
        what="Slurm does not answer, or not now",
        fix="see whether slurmctld runs and is reached from here: `scontrol ping`",
        texts=(
            *("socket timed out", "unable to contact", "unable to connect", "connection refused"),
            *("connection failure", "connection timed out", "connection reset"),
            *("connection aborted", "shutdown failure", "message receive failure"),
            *("message send failure", "broken pipe", "zero bytes were transmitted"),
            *("transport endpoint", "temporarily unable", "standby mode", "in standby"),
            *("unexpected message", "insane message length", "send/recv operation"),
            *("rate limit", "rpc limit", "please retry", "try again", "shutting down", "reconfig"),
            *("incompatible versions", "protocol version", "no controllers", "lost connection"),
            *("no route to host", "host is down", "network is unreachable", "network is down"),
            "resource temporarily unavailable",
            "unspecified error",  # sbcast of 26.05, whatever it is
        ),
        seen="22.05, 24.11, 26.05: stopped, another port, no such host, no route (rc 1; scancel 8 "
        "or 140, sbcast 255, on 26.05 1)",
    ),
)


class AwayError(TransientError):
    """Slurm is away, or this machine can't reach it."""

    def __init__(self, said: str, cause: AwayCause | None) -> None:
        """No cause: a command neither ended in time nor said anything."""
        self.cause = cause
        self.seen = f"{cause.what}: {said}" if cause else said
        self.fix = cause.fix if cause else "see what `scontrol show config` says here"
        super().__init__(f"{self.seen}; {self.fix}" if cause else self.seen)


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


def away(error: str) -> tuple[AwayCause, str] | None:
    """Why a failed command said nothing about what it was asked, and the line that says so.

    Of a submission the reason at the end of the line counts: before it, sites print advice of
    their own, with whatever words.
    """
    at = error.lower().rfind(_SUBMISSION)
    said = error if at < 0 else error[at + len(_SUBMISSION) :].partition("\n")[0]
    cause = next((one for one in AWAY if one.fits(said)), None)
    if cause is None:
        return None
    return cause, [line.strip() for line in said.splitlines() if cause.fits(line)][-1]


def is_away(error: str) -> bool:
    """Whether a failed command said that Slurm did not answer."""
    return away(error) is not None


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
