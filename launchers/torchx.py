"""Agents through TorchX's schedulers: `local_cwd` on this machine, `slurm` on a cluster.

TorchX submits; what it can't tell (which nodes a job has, which of them died, a job's end where
Slurm has no accounting) is asked where superv's other launchers ask it. TorchX runs in its site's
own interpreter, in a child with a deadline: it pins versions that a trainer must not have.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from launchers.local import GRACE_S, Local, LocalJob, environment
from launchers.sbatch import Sbatch
from launchers.slurm import Slurm
from sbatch_templates import render
from supervisor import proc
from supervisor.channel.delivery import VARIABLE
from supervisor.core.errors import RefusalError, TransientError, UserError
from supervisor.core.nodeset import compress
from supervisor.core.ports import LaunchSpec, Plan
from supervisor.host import private

SUBMIT = Path(__file__).with_name("torchx_submit.py")
SUBMIT_S = 60.0  # torchx is imported within seconds, from slow storage within a minute
UNFIT = (78, 126)  # as torchx_submit.py says, and an interpreter that can't be executed


def torchx(*, scheduler: str, python: str, args: Mapping[str, str]) -> TorchxLocal | TorchxSlurm:
    """The launcher for one of TorchX's schedulers.

    `python` is the interpreter that has torchx; `args` are more run options of the scheduler.
    """
    if scheduler == "slurm":
        return TorchxSlurm(python=python, args=args)
    return TorchxLocal(python=python, args=args)


def _submission(python: str, scheduler: str, args: Mapping[str, str]) -> tuple[str, ...]:
    words = tuple(f"--arg={name}={value}" for name, value in args.items())
    return (python, "-I", str(SUBMIT), scheduler, *words)


def _unfit(done: proc.Completed) -> UserError:
    """torchx is not there, or does not take the request: asking again would change nothing."""
    said = done.err.strip().splitlines() or ["torchx did not say why it failed"]
    return RefusalError(said[-1])


class TorchxLocal(Local):
    """Nodes are replicas of one app of TorchX's `local_cwd`."""

    def __init__(
        self, *, python: str, args: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> None:
        super().__init__(folder=folder)
        self.programs = (python,)
        self._submit_argv = _submission(python, "local_cwd", args or {})

    def plan(self, spec: LaunchSpec) -> Plan:
        """See Launcher.plan. The folder's name is in no argv: replicas find it where ps can't."""
        nodes = self._wanted(super().plan(spec))
        script = render(
            "torchx_replica.sh",
            path=os.defpath,
            agent_loop=render("agent_loop.sh"),
            agent_argv=spec.agent_argv,
        )
        argv = (*self._submit_argv, "--", *nodes)
        return Plan(job_name=spec.job_name, argv=argv, script=script, env={VARIABLE: spec.folder})

    @staticmethod
    def _wanted(plan: Plan) -> tuple[str, ...]:
        if "--" not in plan.argv:
            return plan.argv[2:]
        return plan.argv[plan.argv.index("--") + 1 :]

    async def _begin(self, job: str, record: LocalJob, plan: Plan) -> None:
        folder = Path(plan.env[VARIABLE])
        try:
            private.make(folder.parent)
            private.folder(folder)
        except OSError as error:
            raise TransientError(f"{error.filename or folder}: {error.strerror}") from None
        env = environment(os.environ, job)
        del env["SLURM_JOB_ID"]  # the child is none of the job's
        done = await proc.run(
            (*self._submit_argv, f"--job={job}", "--", *record.nodes),
            deadline_s=SUBMIT_S,
            stdin=record.script.encode(),
            env={**env, **plan.env},
        )
        if done.rc in UNFIT:
            raise _unfit(done)
        if done.rc != 0:
            raise TransientError(f"agents of {compress(record.nodes)} not started: {done.why()}")

    async def _again(self, job: str, record: LocalJob, node: str, folder: str) -> None:
        """TorchX starts a replica once: this is the same script, without it."""
        done = await proc.run(
            ("setsid", "--fork", "sh", "-c", record.script, "superv-replica", "0", node),
            deadline_s=GRACE_S,
            env={**environment(os.environ, job), VARIABLE: folder},
        )
        if done.rc != 0:
            raise TransientError(f"the agent of {node} was not started: {done.why()}")


class TorchxSlurm(Sbatch):
    """One Slurm job, submitted by TorchX's `slurm`; asked about as `sbatch`'s own."""

    def __init__(
        self, *, python: str, args: Mapping[str, str] | None = None, slurm: Slurm | None = None
    ) -> None:
        super().__init__(slurm=slurm)
        self.programs = (python, *Sbatch.programs)
        self._submit_argv = _submission(python, "slurm", args or {})

    def plan(self, spec: LaunchSpec) -> Plan:
        """See Launcher.plan. The script becomes an argument: its folder is named elsewhere."""
        plain = super().plan(replace(spec, folder=""))
        options = plain.argv[2:]  # after: sbatch --parsable
        return replace(
            plain, argv=(*self._submit_argv, "--", *options), env={VARIABLE: spec.folder}
        )

    def _refusal(self, done: proc.Completed, argv: Sequence[str]) -> UserError:
        return _unfit(done) if done.rc in UNFIT else super()._refusal(done, argv)
