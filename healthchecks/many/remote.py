"""Asks many nodes for a report: which way to each of them, all at once, each with a deadline.

Slurm's word decides the way: nodes with nothing to do are asked through one srun, those that it
can't use through ssh, busy ones are left alone. Compares nothing and decides nothing about health.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from healthchecks.frame.check import Result, Status
from healthchecks.frame.report import Finding, Report, parse
from healthchecks.many import srun, ssh
from healthchecks.many.slurm_nodes import (
    FREE,
    Transport,
    gpus_used,
    holders,
    look_up,
    transport_for,
)
from launchers.slurm import Slurm
from launchers.slurm_rows import SlurmNode
from supervisor.config import Site
from supervisor.core.errors import TransientError, UserError
from supervisor.core.nodeset import compress
from supervisor.core.ports import JobState

ANSWERS = "node.answers"  # the check whose finding says that a node gave no report
DEADLINE_S = 60.0
AROUND_S = 10.0  # of a deadline, for what is not the checks on the node: start, connect, collect
SETTLE_S = 15.0  # for nodes whose step has ended to be idle again
SETTLE_POLL_S = 0.5
TRIES = 3  # nodes may be taken between Slurm's word and srun


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAnswer:
    """What came of asking one node."""

    node: str
    transport: Transport
    state: str = ""  # Slurm's word; empty where Slurm was not asked
    why: str = ""  # why it was left alone
    report: Report | None = None  # None: it was left alone, and nothing is known of it

    @property
    def answered(self) -> bool:
        """Whether the report is the node's own."""
        return self.report is not None and not any(f.check == ANSWERS for f in self.report.findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """What to ask of every node."""

    names: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by check

    def order(self, nonce: str, deadline_s: float, **more: Any) -> bytes:
        """For `python -m healthchecks`."""
        asked = {
            "names": self.names,
            "tags": self.tags,
            "settings": self.settings,
            "deadline_s": deadline_s,
            "mark": nonce,
        }
        return json.dumps(asked | more).encode() + b"\n"


# Called with each answer as it comes, and of the nodes that have not answered; first of all nodes.
OnAnswer = Callable[[NodeAnswer | None, Sequence[str]], None]
# Asks the agents of a run about its nodes; what they do not answer is left out.
AskRun = Callable[[str, Sequence[str]], Awaitable[Mapping[str, Report]]]


async def examine(
    nodes: Sequence[str],
    suite: Suite,
    site: Site,
    *,
    via: Transport | None = None,
    partition: str | None = None,
    deadline_s: float = DEADLINE_S,
    on_answer: OnAnswer = lambda *_: None,
    ask_run: AskRun | None = None,
    env: Mapping[str, str] | None = None,
) -> dict[str, NodeAnswer]:
    """Ask the nodes (where none is named, all of the partition); an answer for every one, in order.

    `via` forces one way for all nodes that are not
    busy. Takes no longer than the deadline and a few seconds. Cancelled, it leaves nothing behind.

    Raises UserError for a node or a partition that Slurm does not know, and where Slurm can't be
    used from here; TransientError where Slurm does not answer.
    """
    slurm = Slurm(deadline_s=min(30.0, deadline_s), env=env)
    if via is not Transport.SRUN:
        ssh.check(site.ssh)
    here = _Examination(suite, site, slurm, time.monotonic() + deadline_s, on_answer, partition)
    await here.look_up(nodes, needed=via is not Transport.SSH or not nodes)
    on_answer(None, here.nodes)
    jobs = await here.plan(via, ask_run)
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except* UserError as errors:  # the first is as good as the others
        raise _first(errors) from None
    return {node: here.answers[node] for node in here.nodes}


class _Examination:
    """One look at many nodes."""

    def __init__(
        self,
        suite: Suite,
        site: Site,
        slurm: Slurm,
        end: float,
        on_answer: OnAnswer,
        partition: str | None,
    ) -> None:
        self._suite = suite
        self._site = site
        self._slurm = slurm
        self._end = end
        self._on_answer = on_answer
        self._partition = partition
        self._python = site.node_python or sys.executable
        self._connections = asyncio.Semaphore(site.ssh.max_connections)
        self.nodes: tuple[str, ...] = ()
        self.known: dict[str, SlurmNode] = {}
        self.answers: dict[str, NodeAnswer] = {}

    async def look_up(self, nodes: Sequence[str], *, needed: bool) -> None:
        """What Slurm says of the nodes. Without Slurm they can still be asked through ssh."""
        try:
            self.known = await look_up(self._slurm, nodes, self._partition)
        except (UserError, TransientError):
            if needed:
                raise
        self.nodes = tuple(dict.fromkeys(nodes)) or tuple(self.known)
        strangers = [node for node in nodes if node not in self.known]
        if strangers and (needed or self.known):
            raise UserError(
                f"{compress(strangers)}: Slurm knows no such node"
                + (f" in partition {self._partition}" if self._partition else "")
                + "; sinfo -N lists them; --via ssh asks any host"
            )

    async def plan(self, via: Transport | None, ask_run: AskRun | None) -> list[Any]:
        """The jobs to do; nodes that are left alone are answered here."""
        ways = {node: transport_for(self.known[node]) for node in self.nodes if node in self.known}
        mixed = [n for n, (w, _) in ways.items() if w is None]
        used = await gpus_used(self._slurm, mixed)
        by_srun, by_ssh, busy = [], [], []
        for node in self.nodes:
            how, why = ways.get(node, (Transport.SSH, ""))
            if how is None:
                how = Transport.NONE if node in used else Transport.SRUN
                why = "its GPUs are in use" if node in used else ""
            if how is Transport.NONE:
                busy.append((node, why))
            elif via is Transport.SRUN and how is Transport.SSH:
                self._answer(
                    node, Transport.NONE, _unknown(f"Slurm can't use it: {why}", "--via ssh")
                )
            elif (via or how) is Transport.SSH:
                by_ssh.append(node)
            else:
                by_srun.append(node)
        jobs: list[Any] = await self._leave_alone(busy, ask_run)
        jobs += [self._by_srun(step, TRIES) for step in self._steps(by_srun)]
        jobs += [self._by_ssh(node) for node in by_ssh]
        return jobs

    # --- busy nodes ---

    async def _leave_alone(
        self, busy: Sequence[tuple[str, str]], ask_run: AskRun | None
    ) -> list[Any]:
        """Answers for nodes that are left alone; the jobs that ask runs about theirs."""
        if not busy:
            return []
        held = await holders(self._slurm, [node for node, _ in busy])
        runs: dict[str, list[str]] = {}
        for node, why in busy:
            run, text = held.get(node, ("", why))
            if run and ask_run is not None:
                runs.setdefault(run, []).append(node)
            else:
                self._alone(node, text)
        if ask_run is None:
            return []
        return [self._by_agents(run, nodes, ask_run) for run, nodes in runs.items()]

    async def _by_agents(self, run: str, nodes: Sequence[str], ask_run: AskRun) -> None:
        reports = await ask_run(run, nodes)
        for node in nodes:
            if node in reports:
                self._heard(node, Transport.AGENT, reports[node])
            else:
                self._alone(node, f"in run {run}, whose agent does not answer")

    def _alone(self, node: str, why: str) -> None:
        self._take(
            NodeAnswer(node=node, transport=Transport.NONE, state=self._state(node), why=why)
        )

    # --- srun ---

    def _steps(self, nodes: Sequence[str], *, all_cpus: bool = True) -> list[srun.SrunStep]:
        """The fewest steps that take all of the nodes: what a job asks for is the same on each."""
        alike: dict[tuple[str, str, int, bool], list[str]] = {}
        for node in nodes:
            seen = self.known[node]
            whole = seen.word in FREE
            cpus = seen.idle_cpus if whole and all_cpus else 0
            alike.setdefault((seen.partitions[0], seen.gres, cpus, whole), []).append(node)
        return [
            srun.SrunStep(
                nodes=tuple(names),
                partition=partition,
                gres=gres,
                cpus=cpus,
                whole=whole,
                options=self._site.srun_options,
            )
            for (partition, gres, cpus, whole), names in alike.items()
        ]

    async def _by_srun(self, step: srun.SrunStep, tries: int) -> None:
        nonce = secrets.token_hex(6)
        left = self._left_s()
        ended = await srun.ask(
            step,
            self._suite.order(nonce, max(1.0, left - AROUND_S)),
            nonce,
            python=self._python,
            env=self._slurm.env,
            deadline_s=left,
            got=lambda node, text: self._arrived(node, Transport.SRUN, text),
        )
        missing = [node for node in step.nodes if node not in self.answers]
        lost = [node for node in missing if ended.failed_on(node)]
        others = [node for node in missing if node not in lost]
        if others and tries > 1 and (ended.refused or lost):
            for node in lost:
                self._answer(node, Transport.SRUN, _no_answer(node, ended, left))
            name = srun.job_name(nonce)
            await self._again(others, name, tries - 1, all_cpus=not ended.impossible)
            return
        for node in missing:
            self._answer(node, Transport.SRUN, _no_answer(node, ended, left))

    async def _again(self, nodes: Sequence[str], last: str, tries: int, *, all_cpus: bool) -> None:
        """A step was not granted, or one node cost the others theirs: ask these once more.

        Each as soon as the job of that step has given it back: where one node does not answer,
        Slurm takes its time with some of the others.
        """
        waiting = list(nodes)
        until = min(self._end - AROUND_S, time.monotonic() + SETTLE_S)
        async with asyncio.TaskGroup() as group:
            while waiting:
                try:
                    held = await self._held(waiting, last)
                except (TransientError, UserError) as error:
                    for node in waiting:
                        self._answer(
                            node, Transport.SRUN, _unknown(f"it was not asked again: {error}")
                        )
                    return
                back = [node for node in waiting if node not in held]
                ways = {node: transport_for(self.known[node]) for node in back}
                free = [node for node, (how, _) in ways.items() if how in (Transport.SRUN, None)]
                taken = [(n, why) for n, (_, why) in ways.items() if n not in free]
                await self._leave_alone(taken, None)
                for step in self._steps(free, all_cpus=all_cpus):
                    group.create_task(self._by_srun(step, tries))
                waiting = [node for node in waiting if node in held]
                if waiting and time.monotonic() > until:
                    for node in waiting:
                        why = f"Slurm did not end the step before ({last}) there in time"
                        self._answer(node, Transport.SRUN, _unknown(why, "ask again"))
                    return
                if waiting:
                    await asyncio.sleep(SETTLE_POLL_S)

    async def _held(self, nodes: Sequence[str], last: str) -> set[str]:
        """Those of the nodes that the job of the last step still has; looks at all of them."""
        jobs = await self._slurm.jobs(name=last)
        held = {n for job in jobs if job.state is JobState.RUNNING for n in job.nodes}
        self.known |= await look_up(self._slurm, nodes, self._partition)
        return {n for n in nodes if n in held or self.known[n].word == "completing"}

    # --- ssh ---

    async def _by_ssh(self, node: str) -> None:
        async with self._connections:
            left = self._left_s()
            nonce = secrets.token_hex(6)
            came = await ssh.ask(
                node,
                self._site.ssh,
                self._suite.order(nonce, max(1.0, left - AROUND_S), node=node, leash=True),
                nonce,
                python=self._python,
                deadline_s=left,
            )
        if isinstance(came, str):
            self._arrived(node, Transport.SSH, came)
        else:
            seen = self.known.get(node)
            status = came.status
            if came.refused and seen is not None and seen.answers:
                status = Status.UNKNOWN  # its slurmd answers: it lives, and has no sshd for us
            self._answer(node, Transport.SSH, Result(status=status, seen=came.seen, fix=came.fix))

    # --- answers ---

    def _arrived(self, node: str, by: Transport, text: str) -> None:
        if node not in self.known and node not in self.nodes:
            return  # a node that nobody asked
        try:
            report = parse(text)
        except UserError as error:
            self._answer(node, by, _unknown(str(error), "install one version everywhere"))
            return
        self._heard(node, by, report)

    def _heard(self, node: str, by: Transport, report: Report) -> None:
        """A report of the node's own: that it answered is a finding too."""
        answers = Result(status=Status.OK, seen=f"it answered through {by}")
        report = replace(
            report, findings=(Finding(check=ANSWERS, result=answers), *report.findings)
        )
        self._take(NodeAnswer(node=node, transport=by, state=self._state(node), report=report))

    def _answer(self, node: str, by: Transport, result: Result) -> None:
        """A report of superv's own, where the node gave none."""
        seen = self.known.get(node)
        if seen is not None and by is Transport.SSH:
            reason = f" ({why})" if (why := seen.given_reason) else ""
            result = replace(result, seen=f"{result.seen}; Slurm says {seen.state}{reason}")
        report = Report(
            node=node,
            at=time.time(),
            findings=(Finding(check=ANSWERS, result=result),),
            tags=self._suite.tags,
        )
        self._take(NodeAnswer(node=node, transport=by, state=self._state(node), report=report))

    def _take(self, answer: NodeAnswer) -> None:
        if answer.node not in self.answers:
            self.answers[answer.node] = answer
            self._on_answer(answer, [n for n in self.nodes if n not in self.answers])

    def _state(self, node: str) -> str:
        return self.known[node].state if node in self.known else ""

    def _left_s(self) -> float:
        return max(1.0, self._end - time.monotonic())


def _first(errors: BaseExceptionGroup[UserError]) -> UserError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _unknown(seen: str, fix: str = "") -> Result:
    return Result(status=Status.UNKNOWN, seen=seen, fix=fix)


def _no_answer(node: str, ended: srun.StepResult, after_s: float) -> Result:
    """What it means that a node of a step gave no report."""
    said = ended.about(node)
    if ended.refused:
        return _unknown(f"Slurm did not grant it: {said}", "see squeue and sinfo; ask again")
    if ended.rc is None:
        began = "its checks began, but did not end" if node in ended.began else "nothing started"
        return Result(
            status=Status.FAIL,
            seen=f"srun: {began} within {after_s:.0f} s" + (f": {said}" if said else ""),
            fix="look at slurmd's log there and at the node's console",
        )
    if ended.failed_on(node):
        return Result(
            status=Status.FAIL,
            seen=f"srun could not start anything there: {said}",
            fix="look at slurmd's log there and at the node's console",
        )
    return _unknown(
        f"srun: the checks ended without a report: {said or 'nothing was said'}",
        "install superv there at the same path, or set node_python in site.yaml",
    )
