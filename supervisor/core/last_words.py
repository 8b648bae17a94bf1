"""What a rank said when it ended: its error, and whether that only says that another went first.

Pure text. supervisor/signatures knows far more wordings, of whole logs; this is what decides, from
the few lines that come with a rank's end, which end stands first. A test holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from supervisor.core.step_lines import STEP

SHOWN = 200  # characters of it

# Wordings of ranks whose peers have gone, and whose they are. They never name who was first.
CASCADES: tuple[tuple[str, str], ...] = (
    (
        r"[Cc]onnection (?:was )?(?:likely )?(?:reset|closed) by (?:remote )?peer|"
        r"ConnectionResetError|BrokenPipeError|Broken pipe|a peer is gone",
        "Linux errno(3) ECONNRESET, EPIPE as Python and C say it; gloo's tcp/pair.cc",
    ),
    (
        r"recvValue failed|sendBytes failed|recvVector failed|failed to recv, got 0 bytes|"
        r"Failed to recv|TCP client failed|Connection was likely closed|Failed to check the|"
        r"TCPStore\.cpp|DistNetworkError(?!.*(?:EADDRINUSE|failed to listen))|"
        r"NCCL timeout from store",
        "torch's TCPStore.cpp and its socket.cpp: the rank that has the store is gone",
    ),
    (
        r"ncclRemoteError|remote process exited or there was a network error|"
        r"NCCL communicator was aborted|NCCL operation failed with|socketProgress|"
        r"Socket recv failed while polling|Proxy Call to rank|"
        r"communicator encountered error set by|was aborted on rank|Aborting work because|"
        r"ncclInProgress|Abort COMPLETE|"
        r"ncclSystemError|unhandled system error|NCCL error: remote process|"
        r"Got completion from peer \S+ with (?:error|status=)\s?(?:\w+\()?5\b",
        "NCCL errors.h, socket.cc and net_ib (a flush follows the first error of the queue)",
    ),
    (
        r"watchdog thread terminated with exception|Some NCCL operations have failed or timed out|"
        r"taking the entire process down|to avoid data inconsistency|"
        r"(?:Observed|Received a) (?:flight recorder )?dump signal|preparing to dump debug info|"
        r"failed to retrieve NCCL_DESYNC_DEBUG report|[Ee]xception raised from (?:check|abort)|"
        r"First PG on this rank|from its local watchdog timeout|"
        r"Dumping (?:flight recorder|trace)|workMetaList_\.size\(\)|DistBackendError: \[",
        "torch's ProcessGroupNCCL.cpp: the watchdog ends a rank whose collective was aborted",
    ),
    (
        r"death signal|SignalException: Process \d+ got signal|ChildFailedError|"
        r"(?:Sending|Closing) process \d+ |closing signal SIG|via signal SIG|"
        r"Unable to shutdown process|sigkill_handler\] Killing subprocess|signal_handler|"
        r"RendezvousClosedError|RendezvousGracefulExitError|torch\.distributed\.elastic.*Stopping|"
        r"keep-alive heartbeat|failed to shutdown the rendezvous|SIGTERM|exitcode: -15\)|"
        r"worker group successfully finished|exits with return code = -15",
        "torchelastic's agent and multiprocessing, DeepSpeed's launch.py",
    ),
    (
        r"\*\*\* STEP \S+ ON \S+ CANCELLED AT|"
        r"srun: (?:Job step aborted|[Ff]orc|Terminating|got SIG|interrupt|sending Ctrl-C)|"
        r": tasks? [\d,\-]+: (?:Terminated|Killed by signal 15)|"
        r"srun: error: Timed out waiting for job step|_step_signal",
        "srun and slurmstepd: with --kill-on-bad-exit all others end so",
    ),
    (
        r"terminate called|std::terminate|Fatal Python error: Aborted|Aborted \(core dumped\)|"
        r"line \d+:\s+\d+ Aborted|exitcode: -6\)|\(SIGABRT\)|exits with return code = -6",
        "libstdc++, bash, faulthandler: an abort follows what was said just before",
    ),
)
_CASCADE = re.compile("|".join(pattern for pattern, _ in CASCADES))
# What stands before a line: `[rank3]:`, `3: `, a time.
_LABEL = re.compile(
    r"^(?:\s*(?:\[(?:default|rank) ?\d+\]:?|\[?\d{4}-\d\d-\d\d[T ][\d:.,]+\]?|\d{1,5}:(?= )))+\s*"
)
_EXCEPTION = re.compile(
    r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Failure|Timeout)\b(?::\s|\s*$)"
    r"|AssertionError|SystemExit\b"
)
_FATAL = re.compile(
    r"Fatal Python error|[Ss]egmentation fault|Bus error|Illegal instruction|CUDA (?:error|out of)|"
    r"(?i:\b(?:fatal|error|panic|abort(?:ed|ing))\b(?=[\]:\s]))|NCCL WARN|command not found|"
    r"No space left|Disk quota exceeded|Permission denied|No such file or directory|"
    r"Read-only file system|Killed\b|out of memory|can't open file|No module named|^superv: "
)
_STEP = re.compile(STEP)


def is_cascade(line: str) -> bool:
    """Whether a line says no more than that another rank or node has gone."""
    return _CASCADE.search(line) is not None


def last_words(tail: Sequence[str]) -> str:
    """The line of a rank's last ones that says why it ended; empty where none does.

    An exception goes before other errors, and either before what only follows from another's end.
    """
    return _LABEL.sub("", telling(tail)).strip()[:SHOWN]


def telling(tail: Sequence[str]) -> str:
    """The same line as it was written, with what stands before it."""
    bare = [_LABEL.sub("", line).strip() for line in tail]
    lines = list(zip(tail, bare, strict=True))
    found = [one for one in lines if _EXCEPTION.match(one[1])]
    found = [one for one in lines if _FATAL.search(one[1]) and one not in found] + found
    own = [one for one in found if not is_cascade(one[1])]
    told = own or found or [one for one in lines if is_cascade(one[1])]
    return told[-1][0] if told else ""


def last_line(tail: Sequence[str]) -> str:
    """A rank's last line; empty where it tells a step, which says nothing of an end."""
    line = _LABEL.sub("", tail[-1]).strip() if tail else ""
    return "" if _STEP.search(line) else line[:SHOWN]


def same_words(one: str, other: str) -> bool:
    """Whether two lines are one message, but for numbers and addresses in them."""
    return bool(one) and _shape(one) == _shape(other)


def _shape(line: str) -> str:
    return re.sub(r"0x[0-9a-f]+|\d+", "0", line)
