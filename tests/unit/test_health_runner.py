"""Runs of checks: whatever a check does, the run ends, names it, and leaves nothing behind."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest

from healthchecks.frame import state as kept
from healthchecks.frame.check import Blame, Check, Findings, Metric, Result, Skip, Status, Unknown
from healthchecks.frame.context import Ctx
from healthchecks.frame.lane import probe_name
from healthchecks.frame.report import Finding, Report
from healthchecks.frame.runner import MAX_CHILDREN, Order, enough_s, run
from healthchecks.sources.elapsed import Elapsed
from supervisor.core.errors import UserError
from supervisor.core.setting import About
from supervisor.host import procfs
from tests.processes import beside_a_hog
from tests.processes import children as children_of

HUNG_FUSE = Path(__file__).with_name("hung_fuse.py")
AMPLE_S = 60.0  # s: nothing but a fault of ours reaches it
SHORT_S = 0.15
FINE = Result(status=Status.OK, seen="fine")


def made(name: str, look: Callable[..., Result], **more: Any) -> Check:
    """A check that is not registered."""
    given: dict[str, Any] = {
        "tags": frozenset({"preflight"}),
        "deadline_s": AMPLE_S,
        "call_deadline_s": None,
        "resource": "host",
        "targets": None,
        "on_timeout": Status.UNKNOWN,
        "timeout_fix": "",
        "blame": Blame.NODE,
        "cohort": None,
        "drains": True,
        "untested": "",
    }
    return Check(name=name, run=look, **given | more)


def fine(ctx: Ctx) -> Result:
    return FINE


def hang(ctx: Ctx) -> Result:
    ctx.announce("nvmlSomething gpu 3")
    time.sleep(3600)
    return FINE


def deaf(ctx: Ctx) -> Result:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return hang(ctx)


def children() -> set[int]:
    """This process's children, ended or not."""
    return {*children_of(os.getpid())}


@pytest.fixture(autouse=True)
def nothing_left():
    """No run leaves a child behind, ended or not."""
    before = children()  # of tests that ran earlier
    yield
    assert children() <= before


def look(*checks: Check, **order: Any) -> dict[str, Finding]:
    report = run(Order(checks=checks, **order))
    return {finding.name: finding for finding in report.findings}


def only(what: Callable[..., Result], **more: Any) -> Result:
    (finding,) = look(made("a.b", what, **more)).values()
    return finding.result


def test_findings_come_in_the_order_of_the_checks_with_time_and_cpu():
    report = run(
        Order(
            checks=[made("z.host", fine), made("b.gpu", fine, resource="nvml"), made("a", fine)],
            tags=("preflight",),
            node="n7",
        )
    )
    assert [f.name for f in report.findings] == ["z.host", "b.gpu", "a"]
    assert (report.node, report.status, report.tags) == ("n7", Status.OK, ("preflight",))
    assert report.at > 1.7e9 and report.took_s > 0 and report.cpu_s > 0 and report.notes == ()


def test_a_finding_survives_the_way_from_the_child():
    def full(ctx: Ctx) -> Result:
        found = Findings()
        found.warn("ok so far", expected="nothing")
        found.fail("worn\nout", expected="new", fix="replace it", device="gpu3", shared="switch 1")
        found.fail("old", expected="new", device="gpu5")
        found.metric("errors", 3.5, "/h")
        found.fact("vbios", 96)
        return found.result("well")

    assert only(full) == Result(
        status=Status.FAIL,
        seen="gpu3: worn\nout; gpu5: old",
        expected="new",
        fix="replace it",
        metrics={"errors": Metric(value=3.5, unit="/h")},
        facts={"vbios": "96"},
        devices=("gpu3", "gpu5"),
        shared="switch 1",
    )


def raises(error: BaseException) -> Callable[[Ctx], Result]:
    def look(ctx: Ctx) -> Result:
        raise error

    return look


def reads_nothing(ctx: Ctx) -> Result:
    ctx.text("proc/nowhere")
    return FINE


def reads_words(ctx: Ctx) -> Result:
    ctx.number("words")
    return FINE


def dies(number: int) -> Callable[[Ctx], Result]:
    def look(ctx: Ctx) -> Result:
        ctx.announce("ibv_query_port mlx5_4")
        os.kill(os.getpid(), number)
        time.sleep(3600)
        return FINE

    return look


def writes(data: bytes, *, then_hang: bool = True) -> Callable[[Ctx], Result]:
    """What a library could do that writes to a descriptor which is not its own."""

    def look(ctx: Ctx) -> Result:
        os.write(3, data)
        if then_hang:
            time.sleep(3600)
        return FINE

    return look


def floods(ctx: Ctx) -> Result:
    while True:
        os.write(3, bytes(1 << 16))


def closes(ctx: Ctx) -> Result:
    os.close(3)
    time.sleep(3600)
    return FINE


def nan(ctx: Ctx) -> Result:
    return Result(status=Status.OK, seen="x", metrics={"t": Metric(value=float("nan"))})


def remembers_a_set(ctx: Ctx) -> Result:
    ctx.memory.put("seen", {1, 2})
    return FINE


def wrong_type(ctx: Ctx) -> Any:
    return "fine"


BAD = {
    "skip": (raises(Skip("no GPU here")), Status.SKIP, "no GPU here"),
    "unknown": (raises(Unknown("no library")), Status.UNKNOWN, "no library"),
    "os error": (reads_nothing, Status.UNKNOWN, "/proc/nowhere: No such file or directory"),
    "not a number": (reads_words, Status.UNKNOWN, "/words holds 'many words', not a number"),
    "a fault": (raises(KeyError("gpu")), Status.UNKNOWN, "the check itself failed: KeyError"),
    "exits": (raises(SystemExit(4)), Status.UNKNOWN, "exited with 1, without an answer"),
    "signal": (
        dies(signal.SIGSEGV),
        Status.UNKNOWN,
        "was ended by signal 11 (SIGSEGV) at ibv_query_port mlx5_4, without an answer",
    ),
    "kill": (dies(signal.SIGKILL), Status.UNKNOWN, "was ended by signal 9 (SIGKILL)"),
    "garbage": (writes(b"hello\n"), Status.UNKNOWN, "wrote what is no answer: JSONDecodeError"),
    "bytes": (writes(b"\x80\x80\n"), Status.UNKNOWN, "wrote what is no answer: UnicodeDecodeError"),
    "a list": (writes(b"[]\n"), Status.UNKNOWN, "wrote what is no answer"),
    "no status": (writes(b"{}\n"), Status.UNKNOWN, "wrote what is no answer: KeyError('status')"),
    "half a line": (writes(b'{"a', then_hang=False), Status.UNKNOWN, "wrote what is no answer"),
    "flood": (floods, Status.UNKNOWN, "more than 4194304 bytes"),
    "closes": (closes, Status.UNKNOWN, "without an answer"),
    "NaN": (nan, Status.UNKNOWN, "the check itself failed: ValueError"),
    "memory": (remembers_a_set, Status.UNKNOWN, "the check itself failed: TypeError"),
    "type": (wrong_type, Status.UNKNOWN, "the check itself failed: AttributeError"),
}


@pytest.mark.parametrize("resource", ["host", "nvml"])
@pytest.mark.parametrize("name", BAD)
def test_what_a_check_may_do_to_itself_harms_no_other(name: str, resource: str, tmp_path: Path):
    what, status, text = BAD[name]
    (tmp_path / "words").write_text("many words\n")
    found = look(
        made("first", fine, resource=resource),
        made("bad", what, resource=resource),
        made("last", fine, resource=resource),
        root=tmp_path,
    )
    assert [found[n].status for n in ("first", "bad", "last")] == [Status.OK, status, Status.OK]
    assert text in found["bad"].result.seen


def test_a_probe_that_hangs_costs_its_deadline_and_says_where():
    result = only(hang, deadline_s=SHORT_S, on_timeout=Status.FAIL, timeout_fix="reboot it")
    assert result.status is Status.FAIL and result.fix == "reboot it"
    assert "at nvmlSomething gpu 3; process " in result.seen and "sleeping" in result.seen
    assert result.expected == f"an answer within {SHORT_S:g} s"


def test_a_probe_that_gets_no_processor_is_not_called_hung():
    """As on a node where others take every CPU: it could run, and is not let."""

    def computes(ctx: Ctx) -> Result:
        with beside_a_hog():
            while True:
                pass

    result = only(computes, deadline_s=SHORT_S, on_timeout=Status.FAIL)
    assert result.status is Status.UNKNOWN and "waited for a processor" in result.seen


@pytest.mark.skipif(os.geteuid() != 0, reason="a process that is let run before others needs root")
def test_one_that_computes_for_too_long_is_late_as_any_other():
    def computes(ctx: Ctx) -> Result:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        while True:
            pass

    result = only(computes, deadline_s=1.0, on_timeout=Status.FAIL)
    assert result.status is Status.FAIL and "no answer within" in result.seen


def test_the_time_of_an_answer_is_without_the_waits_for_a_processor():
    def computes(ctx: Ctx) -> Result:
        with beside_a_hog():
            began, elapsed = time.monotonic(), Elapsed()
            while time.monotonic() < began + 1.0:
                pass
            return Result(status=Status.OK, seen=f"{elapsed.s() / (time.monotonic() - began):.3f}")

    assert float(only(computes).seen) < 0.5


def test_one_that_ignores_to_be_ended_is_killed():
    assert "no answer within" in only(deaf, deadline_s=SHORT_S).seen


def test_a_call_that_hangs_costs_the_calls_deadline():
    def calls(ctx: Ctx) -> Result:
        for gpu in range(3):
            ctx.announce(f"quick {gpu}")
        ctx.announce("slow")
        time.sleep(3600)
        return FINE

    (found,) = look(made("a", calls, call_deadline_s=SHORT_S), deadline_s=20.0).values()
    assert found.result.seen.startswith("no answer within") and "at slow" in found.result.seen
    assert found.result.expected == f"an answer within {SHORT_S:g} s"


def test_an_announced_call_that_ended_is_not_held_against_what_follows():
    def computes(ctx: Ctx) -> Result:
        ctx.announce("quick")
        ctx.announce("")
        time.sleep(2 * SHORT_S)
        return FINE

    assert only(computes, call_deadline_s=SHORT_S).status is Status.OK


def test_a_hung_driver_is_asked_no_more_but_the_host_is():
    found = look(
        made("gpu.a", fine, resource="nvml"),
        made("gpu.b", hang, resource="nvml", deadline_s=SHORT_S),
        made("gpu.c", fine, resource="nvml"),
        made("host.a", fine),
        made("host.b", hang, deadline_s=SHORT_S),
        made("host.c", fine),
    )
    assert found["gpu.a"].status is found["host.a"].status is found["host.c"].status is Status.OK
    assert found["gpu.c"].status is Status.UNKNOWN
    assert found["gpu.c"].result.seen == "not tried: gpu.b got no answer"


def test_targets_are_probed_apart():
    def each(ctx: Ctx, **_: object) -> list[str]:
        return ["/good", "/bad", "/fine", "/bad"]

    def mount(ctx: Ctx, target: str) -> Result:
        return hang(ctx) if target == "/bad" else Result(status=Status.OK, seen=target)

    found = look(made("nfs", mount, targets=each, resource="nfs", deadline_s=SHORT_S))
    assert {n: f.status for n, f in found.items()} == {
        "nfs[/good]": Status.OK,
        "nfs[/bad]": Status.UNKNOWN,
        "nfs[/fine]": Status.OK,
    }
    assert found["nfs[/good]"].on == "/good" and found["nfs[/good]"].check == "nfs"


@pytest.mark.parametrize(
    ("each", "status", "text"),
    [
        (lambda ctx, **_: [], Status.SKIP, "nothing here"),
        (lambda ctx, **_: raises(Skip("no mounts"))(ctx), Status.SKIP, "no mounts"),
        (lambda ctx, **_: [ctx.text("proc/mounts")], Status.UNKNOWN, "No such file"),
        (lambda ctx, **_: [][1], Status.UNKNOWN, "the check itself failed"),
    ],
)
def test_no_targets(each, status: Status, text: str, tmp_path: Path):
    found = look(made("nfs", fine, targets=each), root=tmp_path)["nfs"]
    assert found.status is status and text in found.result.seen


def test_everything_hung_at_once_ends_by_the_deadline_of_the_run():
    """More than may be tried at once; some end at once when told, some have to be killed."""
    targets = [str(n) for n in range(MAX_CHILDREN + 20)]
    found = look(
        made("mounts", lambda ctx, on: hang(ctx), targets=lambda ctx, **_: targets, resource="fs"),
        made("deaf", deaf, resource="nvml"),
        made("host.a", hang),
        made("host.b", fine),
        deadline_s=1.0,
    )
    assert len(found) == len(targets) + 3
    assert {f.status for f in found.values()} == {Status.UNKNOWN}
    assert all("the deadline of the whole run came first" in f.result.seen for f in found.values())


def test_many_hung_probes_of_the_host_share_their_deadlines():
    """After the first hung the others are tried apart, at once: the deadlines don't add up."""
    hung = [made(f"host.{n}", hang, deadline_s=1.0) for n in range(100)]
    found = look(*hung, deadline_s=90.0)
    seen = [f.result.seen for f in found.values()]
    assert [text for text in seen if "no answer within" not in text] == []


def test_no_time_at_all():
    assert look(made("a", fine), deadline_s=0.0)["a"].result.seen.startswith("the deadline")


def ended(pids: Path) -> None:
    """Processes that were killed, and are reaped by init: in their own time."""
    until = time.monotonic() + AMPLE_S
    while {procfs.state(int(pid)) for pid in pids.read_text().split()} - {None, "Z"}:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_command_ends_with_its_probe(tmp_path: Path):
    def asks(ctx: Ctx) -> Result:
        ctx.command("sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 3600", deadline_s=AMPLE_S)
        return FINE

    for deadline_s in (1.0, 5.0, 25.0):  # longer on a machine that is too busy to start it
        result = only(asks, deadline_s=deadline_s)
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            break
    assert "at sh -c echo" in result.seen
    ended(tmp_path / "pid")


def test_a_command_speaks_english(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")

    def asks(ctx: Ctx) -> Result:
        done = ctx.command("sh", "-c", "echo $LC_ALL", deadline_s=AMPLE_S)
        return Result(status=Status.OK, seen=done.out.strip())

    assert only(asks).seen == "C"


def test_commands_that_are_not_there_or_do_not_answer():
    def absent(ctx: Ctx) -> Result:
        ctx.command("no-such-program", deadline_s=AMPLE_S)
        return FINE

    def slow(ctx: Ctx) -> Result:
        ctx.command("sleep", "3600", deadline_s=SHORT_S)
        return FINE

    assert only(absent) == Result(status=Status.UNKNOWN, seen="no-such-program is not installed")
    assert "sleep did not answer within" in only(slow).seen


def test_what_a_probe_starts_in_its_session_ends_with_it(tmp_path: Path):
    def leaves(ctx: Ctx) -> Result:
        if os.fork() == 0:
            (tmp_path / "pid").write_text(str(os.getpid()))
            time.sleep(3600)
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.001)
        return FINE

    assert only(leaves) == FINE
    ended(tmp_path / "pid")


def test_no_process_can_be_made(tmp_path: Path):
    """The limit binds users other than root: the run goes in a process of one."""
    script = f"""
import os, resource, sys
sys.path[:0] = {sys.path!r}
from tests.unit.test_health_runner import fine, look, made
from healthchecks.frame.lane import Lane
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
print(look(made("a", fine), made("b", fine, resource="fs"))["b"].result.seen)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=AMPLE_S, cwd="/"
    )
    assert done.stdout == "no process could be made for it: Resource temporarily unavailable\n", (
        done.stderr
    )


def test_a_relative_root_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tree" / "proc").mkdir(parents=True)
    (tmp_path / "tree" / "proc" / "nowhere").write_text("here")
    monkeypatch.chdir(tmp_path)
    assert look(made("a", reads_nothing), root=Path("tree"))["a"].result == FINE


# -- between runs


def counts(ctx: Ctx) -> Result:
    delta = ctx.memory.counter_delta("errors", ctx.number("errors"))
    ctx.memory.put("sum", (ctx.memory.get("sum") or 0) + 1, lasting=True)
    ctx.memory.put("looks", (ctx.memory.get("looks") or 0) + 1)
    recent = len(ctx.memory.recent("state", "up", within_s=3600))
    by = None if delta is None else delta.by
    remembered = f"{ctx.memory.get('sum')} {ctx.memory.get('looks')} {recent}"
    return Result(status=Status.OK, seen=f"{by} {remembered}")


@pytest.fixture
def node(tmp_path: Path) -> Path:
    (tmp_path / "proc/sys/kernel/random").mkdir(parents=True)
    boot(tmp_path, "first")
    return tmp_path


def boot(node: Path, name: str) -> None:
    (node / "proc/sys/kernel/random/boot_id").write_text(f"{name}\n")


def count(node: Path, errors: int, **order: Any) -> Report:
    (node / "errors").write_text(f"{errors}\n")
    check = made("errors", counts)
    return run(Order(checks=[check], root=node, node="n1", folder=node / "state", **order))


def said(report: Report) -> str:
    (finding,) = report.findings
    return finding.result.seen


def test_counters_rise_within_a_boot_and_begin_anew_after_it(node: Path):
    assert said(count(node, 5)) == "None 1 1 1"  # rise, lasting, of the boot, samples
    assert said(count(node, 7)) == "2 2 2 2"
    assert said(count(node, 3)).startswith("None ")  # it was reset
    boot(node, "second")
    assert said(count(node, 9)).split()[0] == "None"
    assert said(count(node, 9)).split()[1:] == ["5", "2", "2"]


def repaired(at: float, check: str = "", node: str = "n1") -> dict[str, Any]:
    return {"settings": {"repairs": {node: {check: at}}}}


@pytest.mark.parametrize("check", ["", "errors", "err.or"])
def test_a_repair_is_forgotten_for_once(node: Path, check: str) -> None:
    count(node, 5)
    again = count(node, 7, **repaired(1000.0, check))
    if check == "err.or":  # another check's
        assert said(again) == "2 2 2 2"
        return
    assert said(again) == "None 1 1 1"
    assert said(count(node, 8, **repaired(1000.0, check))) == "1 2 2 2"  # told again
    assert said(count(node, 9)) == "1 3 3 3"  # nobody tells
    assert said(count(node, 9, **repaired(1000.5, check, "n2"))) == "0 4 4 4"  # another's
    boot(node, "second")
    assert said(count(node, 9, **repaired(1000.0, check))) == "None 5 1 1"
    assert said(count(node, 9, **repaired(1001.0, check))) == "None 1 1 1"


def since(ctx: Ctx) -> Result:
    seen = f"{ctx.repaired:.0f} {ctx.since_repair('errors', ctx.number('errors'))}"
    return Result(status=Status.OK, seen=seen)


def test_what_a_boot_alone_clears_is_counted_from_the_repair_on(node: Path) -> None:
    check = made("errors", since)
    (node / "proc/uptime").write_text("5000.0 1.0")

    def look(errors: int, told: dict[str, Any], **order: Any) -> str:
        (node / "errors").write_text(f"{errors}\n")
        order = {"folder": node / "state", "node": "n1", **told, **order}
        return said(run(Order(checks=[check], root=node, **order)))

    now = time.time()
    assert look(3, {}) == "0 3"
    told = repaired(now - 10)
    assert look(3, told, folder=None).split()[1] == "3"  # nothing is remembered of it
    assert look(3, told).split()[1] == "0"
    assert [look(n, told).split()[1] for n in (3, 4, 6)] == ["0", "1", "3"]
    assert [look(n, told).split()[1] for n in (0, 2)] == ["0", "2"]  # cleared
    boot(node, "second")
    (node / "proc/uptime").write_text("5.0 1.0")
    assert look(4, told).split()[1] == "4"
    assert float(look(4, repaired(now + 86_400)).split()[0]) < now + 60  # a clock that is ahead


def test_what_remembers_nothing_takes_no_room(node: Path):
    """Mount points come and go."""
    run(Order(checks=[made("a", fine)], root=node, node="n1", folder=node / "state"))
    assert kept.load(node / "state", "n1", "first").memories == {}


def test_the_last_report_of_each_suite_is_kept(node: Path):
    count(node, 1, tags=("preflight",))
    count(node, 2, tags=("running",))
    count(node, 3)  # named by hand: not a suite
    state = kept.load(node / "state", "n1", "first")
    assert set(state.last) == {"preflight", "running"}
    assert state.last["running"]["results"][0]["check"] == "errors"
    boot(node, "second")
    assert kept.load(node / "state", "n1", "second").last == {}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "\x00",
        '{"boot_id": "first"}',
        '{"boot_id": "first", "memories": {"errors": 1}}',
    ],
)
def test_a_broken_state_is_said_and_replaced(node: Path, content: str):
    (node / "state").mkdir()
    (node / "state" / "n1.json").write_text(content)
    report = count(node, 5)
    assert said(report) == "None 1 1 1"
    assert len(report.notes) == 1 and "the last run's state is lost" in report.notes[0]
    again = count(node, 5)
    assert again.notes == () and said(again).split()[1] == "2"


def test_a_state_that_cannot_be_written_is_said_and_nothing_is_run_twice(node: Path):
    (node / "state" / "n1.json").mkdir(parents=True)  # a folder where the file belongs
    ran = node / "ran"

    def once(ctx: Ctx) -> Result:
        with ran.open("a") as out:
            out.write("x")
        return FINE

    report = run(Order(checks=[made("a", once)], root=node, node="n1", folder=node / "state"))
    assert report.status is Status.OK and ran.read_text() == "x"
    assert any("no state is kept" in note for note in report.notes)


def test_a_folder_that_cannot_be_made_is_said(node: Path):
    (node / "state").write_text("a file")
    report = count(node, 5)
    assert report.status is Status.OK and "no state is kept" in report.notes[0]


def test_a_state_that_another_run_holds_is_read_but_not_written(node: Path):
    count(node, 5)
    with open(node / "state" / "n1.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        report = count(node, 7, deadline_s=2.0)
    assert said(report).split()[1] == "2" and "another run of checks" in report.notes[0]
    assert said(count(node, 8)).split()[1] == "2"


def test_a_child_does_not_hold_the_state(node: Path):
    """One that hangs for ever must not keep the lock."""

    def holds(ctx: Ctx) -> Result:
        links = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{fd}")
        ]
        return Result(status=Status.OK, seen=" ".join(links))

    report = run(Order(checks=[made("a", holds)], root=node, node="n1", folder=node / "state"))
    assert "n1.lock" not in said(report) and "pipe:" in said(report)


def test_what_is_stuck_is_remembered_and_not_tried_again(node: Path):
    """The orphan is a process of ours here; a real one is in the next test."""
    orphan = subprocess.Popen(["sleep", "3600"])
    try:
        begun = procfs.start_time(orphan.pid)
        assert begun is not None
        stuck = kept.Stuck(
            resource="nvml", check="gpu.a", pid=orphan.pid, started=begun, since=1.0, what="D"
        )
        (node / "state").mkdir(mode=0o700)
        kept.save(node / "state", "n1", kept.KeptState(boot_id="first", stuck=[stuck]))
        checks = [
            made("gpu.a", fine, resource="nvml", on_timeout=Status.FAIL, timeout_fix="reboot"),
            made("gpu.b", fine, resource="nvml"),
            made("host", fine),
        ]
        found = look(*checks, root=node, node="n1", folder=node / "state")
        assert found["gpu.a"].status is Status.FAIL and found["gpu.a"].result.fix == "reboot"
        assert "stuck since 1970-01-01" in found["gpu.a"].result.seen
        assert found["gpu.b"].status is Status.UNKNOWN
        assert found["gpu.b"].result.seen.startswith("not tried: gpu.a is stuck since")
        assert found["host"].status is Status.OK
    finally:
        orphan.kill()
        orphan.wait()
    found = look(*checks, root=node, node="n1", folder=node / "state")
    assert {f.status for f in found.values()} == {Status.OK}


def on_hung_mount(mount: str, folder: str) -> None:
    """Three runs over a dead mount; prints what each found, and the orphans after each."""

    def touch(ctx: Ctx, target: str) -> Result:
        os.stat(f"{target}/canary")
        return FINE

    check = made("nfs", touch, targets=lambda ctx, **_: [mount], resource="nfs", deadline_s=0.3)
    kept_in = Path(folder) if folder else None
    for _ in range(3):
        report = run(Order(checks=[check], node="n1", folder=kept_in))
        name = probe_name(f"nfs:{mount}")
        print(json.dumps([said(report), [s.pid for s in procfs.unkillable(name)]]))


@pytest.mark.parametrize("keeps", [True, False], ids=["kept", "nothing is kept"])
def test_one_orphan_on_a_dead_mount_however_often_it_is_looked_at(tmp_path: Path, keeps: bool):
    (tmp_path / "mount").mkdir()
    script = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from tests.unit.test_health_runner import on_hung_mount\n"
        "on_hung_mount(*sys.argv[1:])"
    )
    mount = str(tmp_path / "mount")
    done = subprocess.run(
        [
            sys.executable,
            str(HUNG_FUSE),
            mount,
            sys.executable,
            "-c",
            script,
            mount,
            str(tmp_path / "state") if keeps else "",
        ],
        capture_output=True,
        text=True,
        timeout=AMPLE_S,
    )
    if done.returncode == 77:
        pytest.skip("this machine has no /dev/fuse, or does not let us mount")
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(runs) == 3, done.stderr
    assert "no answer within" in runs[0][0] and "stuck since" in runs[1][0]
    assert "uninterruptible sleep" in runs[2][0]
    orphans = {pid for _, pids in runs for pid in pids}
    assert len(orphans) == 1 and all(len(pids) == 1 for _, pids in runs)


# -- settings


def needs(ctx: Ctx, *, expected: Annotated[int, About(doc="GPUs.", ge=1)] = 8) -> Result:
    return Result(status=Status.OK, seen=str(expected))


def test_settings_reach_the_check_and_wrong_ones_stop_before_anything_runs():
    check = made("gpu.count", needs)
    assert look(check, settings={"gpu.count": {"expected": "4"}})["gpu.count"].result.seen == "4"
    with pytest.raises(UserError, match=r"gpu\.count: no key 'expect'; valid: expected"):
        look(check, settings={"gpu.count": {"expect": 4}})


def test_deep_checks_get_the_time_that_they_may_take():
    quick, deep = made("a", fine), made("b", fine, tags=frozenset({"deep"}), deadline_s=300.0)
    assert enough_s([quick]) == AMPLE_S and enough_s([quick, deep, deep]) == 600.0


# -- the program: signals


THIRD = '''
import os, time
from healthchecks.frame.check import Result, Status, check

@check("third.hang", tags={"preflight"}, resource="third", deadline_s=100)
def hang(ctx):
    """It hangs."""
    with open(os.environ["PIDS"], "a") as out:
        out.write(f"{os.getpid()}\\n")
    done = ctx.command("sh", "-c", "echo $$ >> $PIDS; exec sleep 3600", deadline_s=99)
    return Result(status=Status.OK, seen="never")
'''


@pytest.fixture
def third(tmp_path: Path) -> dict[str, str]:
    """The environment in which another distribution's checks are installed."""
    info = tmp_path / "third-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[superv.checks]\nthird = third\n")
    (tmp_path / "third.py").write_text(THIRD)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "PIDS": str(tmp_path / "pids")}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("program", ["cli", "carried"])
def test_an_interrupted_run_leaves_nothing(
    third: dict[str, str], tmp_path: Path, number: int, program: str
):
    argv = [sys.executable]
    order = {"names": ["third.hang"], "folder": str(tmp_path / "state")}
    if program == "cli":
        argv += [
            "-c",
            "from supervisor.cli import main; main()",
            "check",
            "third.hang",
            "--state",
            order["folder"],
        ]
    else:
        argv += ["-m", "healthchecks"]
    with subprocess.Popen(
        argv, env=third, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        child.stdin.write(json.dumps(order).encode())
        child.stdin.close()
        child.stdin = None
        pids, until = Path(third["PIDS"]), time.monotonic() + AMPLE_S
        while not pids.exists() or pids.read_text().count("\n") < 2:
            assert child.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        child.send_signal(number)
        child.communicate(timeout=AMPLE_S)
    assert child.returncode != 0
    ended(pids)
    assert (tmp_path / "state").is_dir()
