"""A thin client of Slurm's command line tools: it asks and reads, and decides nothing.

Every call has a deadline. A call that fails or does not answer is TransientError: not an answer,
never "gone". The formats asked for are squeue's and sinfo's `--format`, which are the same in all
versions since 20.11; `--json` changes its shape between versions.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from launchers.slurm_answers import AwayError, away, is_away
from launchers.slurm_rows import (
    NODE_FORMAT,
    Partition,
    SlurmNode,
    lines,
    marked_rows,
    parse_jobs,
    parse_nodes,
    parse_partitions,
    parse_time,
)
from supervisor import proc
from supervisor.core.errors import TransientError, UserError
from supervisor.core.nodeset import compress
from supervisor.core.ports import JobStatus
from supervisor.host import trusted

DEADLINE_S = 30.0
SETTLED_S = 1.0  # states that are no node's own pass within this

_MISSED = re.compile(r"REQUEST_FILE_BCAST\(([^)]+)\): (.+)")
_NO_SUCH_JOB = "invalid job id specified"


def client_env(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of Slurm's commands, and so of the job: an allow-list.

    SBATCH_*, SQUEUE_* and SLURM_* variables would change requests and formats behind the back of
    what a plan shows; whoever sets them writes them under `slurm:` instead.

    Raises UserError where root would read a slurm.conf of a user's: it names plugins to load.
    """
    if (conf := environ.get("SLURM_CONF")) and (why := trusted.problem(conf, sticky=True)):
        raise UserError(f"SLURM_CONF: {conf} is not used as root: {why}")
    kept = {"PATH", "HOME", "USER", "LOGNAME", "SLURM_CONF"}
    chosen = {name: value for name, value in environ.items() if name in kept}
    if "PATH" in chosen and os.geteuid() == 0:  # sudo may keep a user's: root runs no sinfo of his
        chosen["PATH"] = ":".join(trusted.folders(environ)[0]) or os.defpath
    return {"PATH": os.defpath, **chosen, "LC_ALL": "C.UTF-8", "TZ": "UTC0"}


class Slurm:
    """The commands superv uses, each with a deadline in seconds."""

    def __init__(
        self,
        *,
        deadline_s: float = DEADLINE_S,
        env: Mapping[str, str] | None = None,
        run: proc.Runner = proc.run,
    ) -> None:
        self.deadline_s = deadline_s
        self._command = run
        self.env = client_env(os.environ if env is None else env)
        self._accounting: bool | None = None

    async def run(
        self, *argv: str, stdin: bytes | None = None, more_env: Mapping[str, str] | None = None
    ) -> proc.Completed:
        """Run one command. TransientError: no answer. UserError: Slurm is not usable from here."""
        done = await self._run(*argv, stdin=stdin, more_env=more_env)
        why = away(done.err) if done.rc != 0 else None
        if why is not None:
            cause, said = why
            late = f"{done.why()}: " if done.rc is None else f"{argv[0]} ended with {done.rc}: "
            raise AwayError(f"{late}{said}", cause)
        if done.rc is None or done.rc < 0:
            raise AwayError(done.why(), None)
        return done

    async def _run(
        self, *argv: str, stdin: bytes | None = None, more_env: Mapping[str, str] | None = None
    ) -> proc.Completed:
        env = self.env if not more_env else {**(self.env or os.environ), **more_env}
        done = await self._command(argv, deadline_s=self.deadline_s, stdin=stdin, env=env)
        if done.rc == 127 and not is_away(done.err):
            left_out = trusted.folders(os.environ)[1] if os.geteuid() == 0 else []
            why = f" ({'; '.join(left_out)})" if left_out else ""
            raise UserError(
                f"{argv[0]} is not on PATH here: superv needs Slurm's client commands{why}"
            )
        return done

    async def _ask(self, *argv: str) -> str:
        done = await self.run(*argv)
        if done.rc != 0:
            raise TransientError(done.why())
        return done.out

    async def jobs(
        self, *, name: str | None = None, ids: Collection[str] | None = None
    ) -> list[JobStatus]:
        """This user's jobs in slurmctld's memory: ended ones stay there for MinJobAge (300 s)."""
        argv = ["--states=all"]
        argv += [f"--user={os.getuid()}"] if ids is None else [f"--jobs={','.join(ids)}"]
        argv += [f"--name={name}"] if name is not None else []
        return parse_jobs(await self.queue("%i|%T|%r|%N|%j", *argv))

    async def queue(self, fields: str, *options: str) -> list[str]:
        """Rows of squeue; fields are divided by `|`, and one that may hold anything comes last.

        Each row begins with a mark that nobody knows before: it is not in the arguments, which all
        users of this machine can see. So no user's job can be named to look like rows of others.
        """
        mark = secrets.token_hex(8)
        done = await self.run(
            *("squeue", "--noheader", "--all", *options),
            more_env={"SQUEUE_FORMAT": f"{mark}|{fields}"},
        )
        if done.rc != 0 and _NO_SUCH_JOB in done.err.lower():
            return []
        if done.rc != 0:
            raise TransientError(done.why())
        return marked_rows(done.out, mark)

    async def starts(self, ids: Collection[str]) -> dict[str, float]:
        """When Slurm expects jobs that wait to start; those of which it says nothing are left out.

        Seconds since the epoch. Slurm says so once its backfill has planned the job.
        """
        if not ids:
            return {}
        rows = [row.split("|", 1) for row in await self.queue("%i|%S", f"--jobs={','.join(ids)}")]
        return {job: at for job, text in rows if (at := parse_time(text)) is not None}

    async def accounting(self) -> bool:
        """Whether this cluster has accounting, and so sacct."""
        if self._accounting is None:
            kind = await self._configured("AccountingStorageType")
            self._accounting = not kind.endswith("/none") and "(null)" not in kind
        return self._accounting

    async def cluster(self) -> str:
        """The cluster's name, as its controller says. Raises UserError, TransientError."""
        return await self._configured("ClusterName")

    async def _configured(self, name: str) -> str:
        text = await self._ask("scontrol", "show", "config")
        found = re.search(rf"(?m)^{name}\s*=\s*(.*?)\s*$", text)
        if found is None:
            raise TransientError(f"scontrol show config does not say {name}")
        return found[1]

    async def past_jobs(self, *, ids: Collection[str] | None = None) -> list[JobStatus]:
        """This user's jobs of the last 30 days from accounting. Empty without accounting."""
        if not await self.accounting():
            return []
        argv = ["sacct", "--noheader", "--parsable2", "--allocations", "--duplicates"]
        argv += ["--format=JobIDRaw,State,Reason,NodeList,JobName"]
        argv += ["--starttime=now-30days", f"--user={os.getuid()}"]
        argv += [f"--jobs={','.join(ids)}"] if ids is not None else []
        return parse_jobs(lines(await self._ask(*argv)))

    async def partitions(self) -> list[Partition]:
        """All partitions with all their nodes."""
        return parse_partitions(await self._ask("sinfo", "--noheader", "--all", "--format=%P|%N"))

    async def nodes(
        self, names: Iterable[str] = (), *, partition: str | None = None
    ) -> dict[str, SlurmNode]:
        """The nodes of these names, or of a partition, or all; unknown names are left out."""
        argv = ["sinfo", "--noheader", "--Node", f"--format={NODE_FORMAT}"]
        argv += [f"--partition={partition}"] if partition else ["--all"]  # not both
        wanted = compress(names)
        found = parse_nodes(await self._ask(*argv, *([f"--nodes={wanted}"] if wanted else [])))
        if drained := [name for name, node in found.items() if node.drains and not node.down]:
            # A node that died and was drained then is `drained`: only its complete state says both.
            argv = ["sinfo", "--noheader", "--all", "--Node", f"--nodes={compress(drained)}"]
            rows = (await self._ask(*argv, "--Format=NodeList:256,StateComplete:256")).splitlines()
            for name, state in (row.split() for row in rows if len(row.split()) == 2):
                if name in found:
                    parts = frozenset(state.lower().split("+"))
                    found[name] = replace(found[name], complete=parts)
        return found

    async def reasons_since(self, names: Collection[str]) -> dict[str, float]:
        """Since when nodes have their reason, in seconds since the epoch; of those with one."""
        if not names:
            return {}
        argv = ["sinfo", "--noheader", "--all", "--Node", f"--nodes={compress(names)}"]
        rows = [line.split("|", 1) for line in lines(await self._ask(*argv, "--format=%N|%H"))]
        said = [(row[0], parse_time(row[-1])) for row in rows]
        return {name: at for name, at in said if at is not None}

    async def settled_nodes(
        self, names: Iterable[str] = (), *, partition: str | None = None
    ) -> dict[str, SlurmNode]:
        """As `nodes`; those whose state may be gone in a moment are looked at once more."""
        found = await self.nodes(names, partition=partition)
        if passing := [name for name, node in found.items() if node.passing]:
            await asyncio.sleep(SETTLED_S)
            again = await self.nodes(passing, partition=partition)
            found |= {name: node for name, node in again.items() if name in found}
        return found

    async def drain(self, node: str, reason: str) -> str:
        """Drain a node; returns why not where Slurm refuses (no rights)."""
        return await self._update(node, "State=DRAIN", f"Reason={reason}")

    async def resume(self, node: str) -> str:
        """Lift a node's drain; returns why not where Slurm refuses."""
        return await self._update(node, "State=RESUME")

    async def _update(self, node: str, *settings: str) -> str:
        done = await self.run("scontrol", "update", f"NodeName={node}", *settings)
        return "" if done.rc == 0 else done.why()

    async def nodes_of(self, names: Collection[str]) -> dict[str, SlurmNode]:
        """The nodes of these names alone."""
        return await self.nodes(names) if names else {}

    async def cancel(self, job: str) -> None:
        """End a job; one that is gone is no error."""
        done = await self.run("scancel", job)
        gone = (_NO_SUCH_JOB, "already completing or completed")
        if done.rc != 0 and not any(words in done.err.lower() for words in gone):
            raise TransientError(done.why())

    async def broadcast(self, job: str, source: str, path: str, *, replace: bool = False) -> None:
        """Copy a local file to a new name on every node of a running job, with its mode.

        `replace`: the name may be taken, as in jobs of superv 0.1. Without --force slurmd refuses
        a name that is taken: with it, it opens the file that is there, whoever made it, fills it
        and gives it to the user (22.05 to 26.05).
        Raises TransientError that names the nodes that did not get it; the others have it.
        """
        force = ("--force",) if replace else ()
        done = await self._run("sbcast", *force, f"--jobid={job}", source, path)
        if done.rc == 0:
            return
        missed = _MISSED.findall(done.err)
        if not missed:
            raise TransientError(done.why())
        named = compress(node for node, _ in missed)
        raise TransientError(f"sbcast of {path} in job {job}: not on {named}: {missed[0][1]}")
