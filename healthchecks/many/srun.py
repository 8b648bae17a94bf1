"""Asks nodes through one Slurm step: every task answers by itself, as soon as it can.

The step is a job of its own that takes whole nodes which have nothing to do, at once or not at all.
It is found again by its name, so that it can be cancelled however far it has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess  # noqa: TID251 - for the type of a child only; supervisor.proc starts it
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from healthchecks.frame.frames import Collector
from supervisor import proc
from supervisor.core.nodeset import compress

GRANT_S = 5  # srun --immediate: for nodes that are idle by Slurm's own word
END_S = 3.0  # for srun's end once every node has answered
CANCEL_S = 10.0
_NOISE = ("lacks support for cpu binding",)  # no answer to anything
_REFUSED = ("unable to allocate", "immediate", "requested nodes are busy", "allocation failure")


@dataclass(frozen=True, slots=True, kw_only=True)
class SrunStep:
    """Nodes that one srun can take together."""

    nodes: tuple[str, ...]
    partition: str
    gres: str = ""  # all that these nodes have of it: a job sees no GPU that it did not ask for
    cpus: int = 0  # of each node; a step that asks for none is bound to one. 0: do not ask
    whole: bool = True  # False: others' jobs are on these nodes; ask for a little only
    options: tuple[str, ...] = ()  # of the site, as --account=…

    def argv(self, name: str, python: str, limit_s: float) -> list[str]:
        count = len(self.nodes)
        share = ["--exclusive", "--mem=0"] if self.whole else ["--mem=256M"]
        return [
            *("srun", f"--partition={self.partition}", f"--nodelist={compress(self.nodes)}"),
            *(f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", *share),
            *([f"--gres={self.gres}"] if self.gres else []),
            *([f"--cpus-per-task={self.cpus}"] if self.cpus else []),
            *(f"--job-name={name}", f"--immediate={GRANT_S}", f"--time={int(limit_s / 60) + 2}"),
            *("--no-kill", "--kill-on-bad-exit=0", "--wait=0", "--cpu-bind=none", "--mpi=none"),
            *("--propagate=NONE", "--chdir=/", "--quiet", *self.options),
            *(python, "-I", "-m", "healthchecks"),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """How a step ended."""

    rc: int | None  # None: it was cancelled at its deadline
    began: frozenset[str]  # nodes on which it started
    said: tuple[str, ...]  # what srun and its tasks said besides

    @property
    def refused(self) -> bool:
        """Slurm did not grant the nodes: one of them was taken a moment ago, or can't be had."""
        text = "\n".join(self.said).lower()
        return not self.began and any(words in text for words in _REFUSED)

    @property
    def impossible(self) -> bool:
        """Slurm says that no such step can ever run: some cores are not for jobs."""
        return any("configuration is not available" in line for line in self.said)

    def about(self, node: str) -> str:
        """The line of what was said that names the node, else the last one."""
        named = [line for line in self.said if self._names(line, node)]
        return (named or list(self.said) or [""])[-1].strip()

    def failed_on(self, node: str) -> bool:
        """Whether srun could not start its task there. It then ends the tasks of all the others."""
        return any("launch" in line.lower() and self._names(line, node) for line in self.said)

    @staticmethod
    def _names(line: str, node: str) -> bool:
        return bool(re.search(rf"(?<![\w-]){re.escape(node)}(?![\w-])", line))


def job_name(nonce: str) -> str:
    """What the job of a step is called."""
    return f"superv-look-{nonce}"


async def ask(
    step: SrunStep,
    order: bytes,
    nonce: str,
    *,
    python: str,
    env: Mapping[str, str],
    deadline_s: float,
    got: Callable[[str, str], None],
) -> StepResult:
    """Run the step; `got(node, text)` is called as each node's report arrives.

    Returns when all have answered, when srun has ended, or at the deadline. Whatever happens,
    cancelled by its caller among it, no job is left behind.
    """
    name = job_name(nonce)
    collector = Collector(nonce=nonce)
    waiting = set(step.nodes)
    with _started(step.argv(name, python, deadline_s), order, env) as (child, pipe):
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline_s) as limit:
                    while data := await reader.read(65536):
                        for node, text in collector.feed(data):
                            waiting.discard(node)
                            got(node, text)
                        if not waiting:
                            limit.reschedule(asyncio.get_running_loop().time() + END_S)
                    await proc.exited(child.pid)
        finally:
            transport.close()
            rc = child.poll()
            if rc is None:
                proc.give_up(child)
                await _cancel(name, env)
    said = (line for line in collector.said if not any(words in line for words in _NOISE))
    return StepResult(rc=rc, began=frozenset(collector.began), said=tuple(said))


@contextlib.contextmanager
def _started(
    argv: Sequence[str], order: bytes, env: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], object]]:
    """srun, and the pipe that it and its tasks write to."""
    out, into = os.pipe()
    feed = os.memfd_create("order")
    try:
        os.write(feed, order)
        os.lseek(feed, 0, os.SEEK_SET)
        child = proc.spawn(argv, env=env, cwd="/", stdout=into, stdin=feed)
    except BaseException:
        os.close(out)
        raise
    finally:
        os.close(into)
        os.close(feed)
    with open(out, "rb", buffering=0) as pipe:
        yield child, pipe


async def _cancel(name: str, env: Mapping[str, str]) -> None:
    argv = ("scancel", f"--user={os.getuid()}", f"--name={name}")
    await asyncio.shield(proc.run(argv, deadline_s=CANCEL_S, env=env))
