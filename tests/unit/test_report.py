"""The report: what it says of a record, in each of its forms."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import fields, replace
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

from healthchecks.frame.areas import AREAS, area_of
from healthchecks.frame.check import REGISTERED, Metric, Status
from healthchecks.frame.registry import registered
from healthchecks.frame.report import Report
from supervisor.cli.report import report as command
from supervisor.core.errors import UserError
from supervisor.core.policy import Policy
from supervisor.core.status import status as describe
from supervisor.core.types import Run, RunSpec
from supervisor.fleet.claims import Claim
from supervisor.fleet.out_of_use import OutOfUse, SlurmWord
from supervisor.fleet.record import DAY_S, Fleet
from supervisor.host.terminal import LONGEST, one_line
from supervisor.report.chart import HEIGHT, LABEL_APART, LEFT, TOP, WIDTH, chart
from supervisor.report.data import gather
from supervisor.report.document import document
from supervisor.report.html import html
from supervisor.report.markdown import markdown, plain
from supervisor.report.model import NodeClaim, NodesOut, Outlier, Point, Slower, Trend
from supervisor.report.text import text
from supervisor.report.trends import KINDS
from supervisor.report.words import amount
from tests.hardware.weeks import DEFECTS, HOUR_S, NOW, finding, node_name, report, says, weeks

EVIL = "<script>alert('x')</script>\n\x1b[31m| `rm` [a](http://evil) @ops\u202e"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    where = tmp_path_factory.mktemp("record") / "fleet.db"
    with Fleet(where) as fleet:
        weeks(fleet, hours=3)
        fleet.exclude(node_name(40), "link 3 flaps", "ops", NOW - 3 * DAY_S, NOW + DAY_S)
        fleet.exclude(node_name(12), "cable ordered", "eve", NOW - HOUR_S, None)
        fleet.exclude(node_name(13), "a test", "eve", NOW - 2 * HOUR_S, NOW - HOUR_S)
        fleet.drained(node_name(7), "superv: gpu.handle: gpu3 lost", NOW - HOUR_S)
    return where


@pytest.fixture(scope="module")
def page(path):
    with Fleet(path, write=False) as fleet:
        return gather(fleet, NOW + 60, NOW - DAY_S)


@pytest.fixture
def empty(tmp_path):
    with Fleet(tmp_path / "fleet.db") as made:
        yield made


# --- what it says ---


def test_the_verdict_counts_every_node_once(page):
    verdict = page.verdict
    assert verdict.nodes == 63
    assert verdict.failed == tuple(node_name(n) for n in (7, *range(41, 64)))
    assert verdict.unknown == (node_name(31),)
    assert verdict.degraded == (node_name(17), node_name(23))
    assert verdict.excluded == (node_name(12), node_name(40))
    assert (verdict.status, verdict.can_run, verdict.usable) == (Status.FAIL, None, 36)
    assert verdict.text == "36 of 63 nodes can be used, 2 warnings"


def test_one_dead_server_is_one_thing_to_do(page):
    first = page.action_items[0]
    assert (first.who, first.do) == ("node-[041-063]", "look at the server 10.0.0.5")
    assert "nfs server 10.0.0.5" in first.what
    assert [(h.status, h.who) for h in page.action_items[1:]] == [
        (Status.FAIL, "node-007"),
        (Status.UNKNOWN, "node-031"),
    ]


def test_exclusions_that_no_longer_fit_need_a_hand(empty):
    bad = [says("gpu.handle", Status.FAIL, "gpu3: lost", after=NOW)]
    for node in (1, 2, 3):
        empty.exclude(node_name(node), "why", "ops", NOW - 600, NOW + 7200 if node < 3 else None)
    empty.record([report(1, NOW, bad), report(2, NOW), report(3, NOW)], "sweep")
    page = gather(empty, NOW, NOW - DAY_S)
    assert [(h.status, h.who) for h in page.action_items] == [
        (Status.WARN, "node-001"),  # soon in, and unhealthy
        (Status.OK, "node-003"),  # out for good, and well
    ]
    assert "ends in 2 h" in page.action_items[0].what


def test_problems_have_evidence_age_and_a_page(page):
    by_title = {p.title: p for p in page.problems}
    lost = by_title["gpu.handle"]
    assert lost.seen[0].text.startswith("gpu3: GPU is lost")
    assert (lost.since, lost.asked) == (NOW - 2 * HOUR_S, NOW)
    assert lost.pages == ("docs/checks/gpu.md#gpuhandle",)
    assert [p.title for p in page.problems if p.excluded] == ["ib.port"]
    assert page.problems[-1].title == "ib.port"  # somebody knows of it already


def test_nodes_alike_share_a_row_and_areas_with_faults_come_first(page):
    rows = {row.nodes: row for row in page.rows}
    server = rows[tuple(node_name(n) for n in range(41, 64))]
    assert server.cells["nfs"].findings == ("nfs.alive[/shared]",)
    assert server.cells["gpu"].status is Status.OK
    assert len(page.rows) == 7
    shown = {node for row in page.rows for node in row.nodes}
    assert shown.isdisjoint(page.healthy)
    assert len(shown) + len(page.healthy) == 63
    assert set(page.areas[:5]) == {"gpu", "gpu memory", "heat", "infiniband", "nfs"}


def test_changes_of_many_nodes_are_one_and_the_newest_comes_first(page):
    first = page.changes[0]
    assert (first.finding, len(first.nodes), first.status) == (
        "nfs.alive[/shared]",
        23,
        Status.FAIL,
    )
    assert [t.at for t in page.changes] == sorted((t.at for t in page.changes), reverse=True)


def test_a_check_that_comes_and_goes_is_one_change(empty):
    for hour in range(12):
        flap = [says("ib.port", Status.FAIL, "mlx5_2: down")] if hour % 2 else []
        empty.record([report(1, NOW + hour * HOUR_S, flap)], "sweep")
    page = gather(empty, NOW + 12 * HOUR_S, NOW - HOUR_S)
    assert {(t.status, t.times) for t in page.changes} == {(Status.FAIL, 6), (Status.OK, 5)}
    assert "(6 times)" in text(page, colour=False)


def test_exclusions_say_when_they_end(page):
    ops, eve, over = page.exclusions
    assert (ops.until, ops.passed) == (NOW + DAY_S, (node_name(40),))
    assert (eve.until, eve.passed) == (None, ())
    assert over.ended == NOW - HOUR_S
    shown = text(page, colour=False)
    assert "(in 23 h 59 min), by ops: link 3 flaps" in shown
    assert "until superv include, by eve" in shown
    assert "was out from" in shown


def claim(node, **more):
    return Claim(**{"node": node, "who": "kim", "since": NOW, "until": None, "reason": "x"} | more)


def test_who_keeps_which_node_out_of_his_own_runs_is_on_the_page(empty):
    run = {"run": "moe", "reason": "node-lost: silence", "until": NOW + DAY_S}
    told = [
        claim("n2", **run),
        claim("n10", **run),
        claim("n1", since=NOW - 60, reason="noisy fan"),
    ]
    page = gather(empty, NOW + 60, NOW - DAY_S, claims=told)
    assert [(c.nodes, c.by, c.run) for c in page.claims] == [
        (("n2", "n10"), "kim", "moe"),
        (("n1",), "kim", None),
    ]
    for shown in (text(page, colour=False), html(page), markdown(page).replace("\\", "")):
        words = " ".join(re.sub(r"<[^>]*>|\*", "", shown).split())
        assert "kim, run moe, since" in words and "node-lost: silence" in words
        assert "n[2,10]" in words
        assert "until superv include: noisy fan" in words
    assert page.verdict.excluded == ()  # nobody's but kim's runs leave them out
    assert document(page)["claims"][1]["run"] is None


def test_what_was_seen_days_ago_is_no_knowledge(empty):
    empty.record([report(1, NOW), report(2, NOW - 3 * DAY_S)], "sweep")
    page = gather(empty, NOW + 60, NOW - DAY_S)
    assert page.verdict.stale == (node_name(2),)
    assert page.verdict.healthy == (node_name(1),)
    assert page.verdict.status is Status.UNKNOWN
    (item,) = page.action_items
    assert (item.who, item.do) == ("node-002", "superv preflight node-002")
    (row,) = page.rows
    assert row.stale
    assert all(cell.stale for cell in row.cells.values())
    assert "node-002  healthy*" in text(page, colour=False)
    assert "stale, was healthy" in html(page)


def test_strikes_are_counted_by_check_and_day(empty):
    bad = [says("gpu.handle", Status.FAIL, "gpu3: lost")]
    for day in (3, 2, 0):
        at = NOW - day * DAY_S + 60
        empty.record([report(1, at - 60), report(1, at, bad), report(2, at)], "sweep")
        empty.record([report(1, at + 60)], "sweep")
    empty.strike(node_name(2), "run r", "node-lost", NOW)
    one, two = gather(empty, NOW + 600, NOW - DAY_S).offenders
    assert (one.node, one.strikes, dict(one.checks)) == (node_name(1), 3, {"gpu.handle": 3})
    assert one.days[-4:] == (1, 1, 0, 1)
    assert sum(one.days) == one.strikes == empty.strikes(NOW + 600)[node_name(1)]
    assert (two.node, dict(two.checks)) == (node_name(2), {"named by a run": 1})


def test_what_got_slower_since_it_was_accepted_is_told(empty):
    def speeds(at, gemm, copies):
        found = finding(
            "deep.gemm", metrics={f"gpu{g}.gemm": Metric(value=v, unit="TFLOP/s") for g, v in gemm}
        )
        copy = finding("deep.bandwidth", metrics={"gpu0.h2d": Metric(value=copies, unit="GB/s")})
        return Report(node="n1", at=at, findings=(found, copy), tags=("deep",))

    empty.accept(speeds(NOW - DAY_S, [(0, 1500.0), (1, 1500.0)], 50.0))
    empty.record([speeds(NOW, [(0, 1200.0), (1, 1490.0)], 60.0)], "accept")
    page = gather(empty, NOW + 60, NOW - DAY_S)
    (one,) = page.slower
    assert (one.node, one.what, one.value, one.accepted) == (
        "n1",
        "deep.gemm gpu0.gemm",
        1200,
        1500,
    )
    for form in (text(page, colour=False), html(page), markdown(page).replace("\\", "")):
        assert "1200 TFLOP/s, 20 % below the 1500 TFLOP/s" in form
    assert gather(empty, NOW + 60, NOW).slower == page.slower
    empty.accept(speeds(NOW, [(0, 1200.0)], 60.0))
    assert gather(empty, NOW + 60, NOW).slower == ()


def test_nodes_far_from_the_others_are_named(page):
    odd = {t.title: [o.node for o in t.outliers] for t in page.trends}
    assert odd["GPU temperature"] == [node_name(23)]
    assert odd["Margin to the GPU's slowdown"] == [node_name(23)]
    assert odd["Rows remapped, corrected errors"] == [node_name(17)]
    assert odd["NFS, a first answer"] == odd["Space used"] == []
    remaps = next(t for t in page.trends if t.title.startswith("Rows"))
    assert (remaps.highest.value, remaps.highest.on) == (254, "gpu5")
    assert len(remaps.rest) == 62
    assert "NVLink errors between looks" in page.all_zero


def test_what_few_nodes_ever_tell_is_named_without_others_to_compare(empty):
    xid = finding("xid", Status.FAIL, metrics={"xid_79": Metric(value=1)})
    empty.record([replace(report(1, NOW), findings=[xid])], "sweep")
    (trend,) = gather(empty, NOW + 60, NOW - DAY_S).trends
    assert (trend.title, [o.node for o in trend.outliers]) == ("Xids", [node_name(1)])
    assert "! node-001 1 xid_79" in text(gather(empty, NOW + 60, NOW), colour=False)


def test_a_lost_gpu_is_one_thing_to_do_and_not_one_for_each_check(empty):
    why = "gpu3: not asked: GPU is lost (15); see gpu.handle"
    deaf = ("persistence", "mig", "ecc.mode", "pcie.link")
    lost = [says("gpu.handle", Status.FAIL, "gpu3: GPU is lost", fix="reboot it")]
    lost += [says(name, Status.UNKNOWN, why) for name in deaf]
    empty.record([report(1, NOW), report(2, NOW)], "sweep")
    empty.record([report(1, NOW + 60, lost)], "sweep")
    page = gather(empty, NOW + 120, NOW - DAY_S)
    assert [(h.who, h.do) for h in page.action_items] == [(node_name(1), "reboot it")]
    assert [(len(p.checks), p.status) for p in page.problems] == [
        (1, Status.FAIL),
        (4, Status.UNKNOWN),
    ]
    assert page.problems[1].title.endswith(" and 3 more")
    assert [(t.also, t.status) for t in page.changes] == [(0, Status.FAIL), (3, Status.UNKNOWN)]


def test_every_measurement_is_one_of_a_check_that_exists():
    for kind in KINDS:
        assert any(kind.pattern.startswith(re.escape(name)) for name in registered()), kind.pattern


def test_an_empty_record_knows_nothing(empty):
    page = gather(empty, NOW, NOW - DAY_S)
    assert page.verdict.status is Status.UNKNOWN
    assert "superv preflight" in page.verdict.text
    for shown in (text(page, colour=False), html(page), markdown(page)):
        assert "no node was looked at yet" in shown
    assert json.loads(json.dumps(document(page)))["verdict"]["nodes"] == 0


def test_one_node_that_is_well(empty):
    empty.record([report(1, NOW)], "preflight")
    page = gather(empty, NOW + 60, NOW - DAY_S)
    assert (page.verdict.status, page.verdict.text) == (Status.OK, "1 of 1 node can be used")
    assert page.action_items == page.rows == page.problems == ()
    assert "No action is required." in text(page, colour=False)
    assert "<figure>" in html(page)  # its lines are points
    assert not any(trend.outliers for trend in page.trends)


# --- a run ---


def down(node, state="down*", **more):
    told = {"since": NOW - HOUR_S, "why": "Not responding", **more}
    return OutOfUse(node=node, by="Slurm", state=state, **told)


def run_status(**changes):
    spec = RunSpec(
        name="pre",
        run_id="0" * 12,
        nodes=60,
        spares=3,
        ranks_per_node=8,
        checkpoint_dir=None,
        policy=Policy(),
    )
    told = {**describe(Run(spec=spec), NOW), "engine": True, "phase": "running", "step": 1200}
    slots = [
        {"slot": i, "node": node_name(i + 1), "state": "ready", "reason": ""} for i in range(60)
    ]
    return {**told, "slots": slots, "spares": [node_name(61)], **changes}


def verdict(fleet, need=60, **changes):
    return gather(fleet, NOW + 60, NOW - DAY_S, run_status(**changes), need).verdict


@pytest.fixture(scope="module")
def well(tmp_path_factory):
    with Fleet(tmp_path_factory.mktemp("well") / "fleet.db") as fleet:
        weeks(fleet, hours=1, nodes=40, defects={7: DEFECTS[7]})
        yield fleet


def test_a_run_that_trains_can_run_whatever_its_nodes_checks_say(well):
    told = verdict(well)
    assert (told.can_run, told.status, told.need) == ("yes", Status.WARN, 60)
    assert "60 of 60 slots filled" in told.text
    assert "node-007 in it failed" in told.text


def test_what_needs_attention_in_a_run_is_an_action_item_and_stops_nothing(well):
    said = {"what": "loss", "since": NOW - 60, "text": "the loss is NaN", "fix": "go back"}
    page = gather(well, NOW, NOW - DAY_S, run_status(attention=[said]), 60)
    (item,) = [i for i in page.action_items if i.who == "run pre"]
    assert (item.status, item.do) == (Status.WARN, "go back")
    assert item.what.startswith("the loss is NaN (since ")
    assert page.verdict.can_run == "yes"
    for shown in (text(page, colour=False), markdown(page), html(page)):
        assert "the loss is NaN" in shown
    mute = {"what": "engine", "since": None, "text": "it did not answer", "fix": "kill it"}
    page = gather(well, NOW, NOW - DAY_S, run_status(engine=False, attention=[mute]), 60)
    assert [i.do for i in page.action_items if i.who == "run pre"] == ["kill it"]


def test_a_run_whose_slot_waits_can_not_run(well):
    slots = run_status()["slots"]
    slots[4] = {"slot": 4, "node": None, "state": None, "reason": ""}
    told = gather(well, NOW, NOW - DAY_S, run_status(phase="gathering", slots=slots, spares=[]), 60)
    assert (told.verdict.can_run, told.verdict.status) == ("no", Status.FAIL)
    assert "waiting   4" in text(told, colour=False)
    assert (
        told.action_items[0].what == "gathering: 2 usable nodes too few"
    )  # node-007 is no good either


@pytest.mark.parametrize(("need", "could"), [(39, 39), (40, 39)])
def test_a_held_run_can_not_run_and_says_whether_nodes_are_there(well, need, could):
    told = verdict(well, need, phase="held", reason="3 restarts without a step", slots=[])
    assert told.can_run == "no"
    there = f"{could} of {need} nodes that it needs could be used"
    assert told.text.startswith(f"pre is held: 3 restarts without a step; {there}")


@pytest.mark.parametrize(("need", "answer"), [(39, "yes"), (40, "no")])
def test_a_run_that_has_ended_is_judged_by_the_fleet(well, need, answer):
    told = verdict(well, need, phase="stopped", reason="by ann", slots=[], spares=[])
    assert told.can_run == answer


QUEUED = {
    "job_id": "12",
    "state": "asked",
    "raw": "PENDING",
    "nodes": [],
    "reason": "AssocGrpNodeLimit",
    "means": "the account has reached its nodes",
    "do": "ask for more",
    "starts_at": NOW + HOUR_S,
}


def test_a_run_in_the_queue_can_not_run_and_slurm_says_why_and_until_when(well):
    told = run_status(phase="pending", slots=[], spares=[], allocations=[QUEUED])
    page = gather(well, NOW, NOW - DAY_S, told, 39)
    assert (page.verdict.can_run, page.verdict.status) == ("no", Status.FAIL)
    why = "job 12 waits (AssocGrpNodeLimit: the account has reached its nodes)"
    for shown in (text(page, colour=False), html(page), markdown(page)):
        words = " ".join(re.sub(r"<[^>]*>", "", shown).split())
        assert why in words.replace("\\", "") and "Slurm expects to start it" in words
    assert document(page)["run"]["queued"] == {
        "job": "12",
        **{key: QUEUED[key] for key in ("reason", "means", "do", "starts_at")},
    }
    old = [{k: v for k, v in QUEUED.items() if k in ("job_id", "state", "raw", "reason")}]
    page = gather(well, NOW, NOW - DAY_S, {**told, "allocations": old}, 39)
    assert "job 12 waits (AssocGrpNodeLimit)" in page.verdict.text


def test_what_the_run_excludes_and_what_slurm_shuts_counts_as_not_there(well):
    ended = {"phase": "stopped", "slots": [], "spares": []}

    def answer(shut=(), **changes):
        told = run_status(**ended, **changes)
        slurm = SlurmWord(nodes=tuple(down(node) for node in shut))
        return gather(well, NOW, NOW - DAY_S, told, 39, slurm=slurm).verdict.can_run

    assert answer() == "yes"
    assert answer(excluded=[{"node": node_name(1), "reason": "x", "since": NOW}]) == "no"
    assert answer(shut=[node_name(1)]) == "no"
    waits = {"phase": "gathering", "slots": run_status()["slots"], "spares": [node_name(61)]}
    told = gather(well, NOW, NOW - DAY_S, run_status(**waits), 60)
    assert told.verdict.can_run == "yes"
    told = gather(well, NOW, NOW - DAY_S, run_status(**waits, drained=[node_name(2)]), 60)
    assert told.verdict.can_run == "no" and f"drained   {node_name(2)}, in Slurm" in text(
        told, colour=False
    )


def test_nodes_that_nobody_looked_at_may_or_may_not_do(empty):
    empty.record([report(1, NOW), report(2, NOW - 3 * DAY_S)], "sweep")
    assert verdict(empty, 2, phase="stopped", slots=[], spares=[]).can_run == "unknown"
    assert verdict(empty, 3, phase="stopped", slots=[], spares=[]).can_run == "no"


def test_a_held_run_is_the_first_action_and_its_incidents_are_told(well):
    incident = {
        "confirmed": NOW - 60,
        "suspected": NOW - 90,
        "cause": "rank-exit",
        "culprits": [node_name(7)],
        "why": "it ended first twice",
        "remedy": "held",
        "runbook": "docs/runbooks/rank-exit.md",
        "attempt": 2,
        "step": 900,
        "evidence": [{"node": node_name(7), "at": NOW - 91, "source": "rank log", "text": "OOM"}],
        **dict.fromkeys(("fault", "first_step", "relaunched", "resumed_from")),
    }
    old = {**incident, "confirmed": NOW - 9 * DAY_S, "cause": "hang"}
    told = run_status(phase="held", reason="no progress", incidents=[old, incident])
    page = gather(well, NOW + 60, NOW - DAY_S, told, 60)
    assert (page.action_items[0].who, page.action_items[0].do) == (
        "run pre",
        "fix it, then superv resume pre",
    )
    assert [i.cause for i in page.run.incidents] == ["rank-exit"]
    for shown in (text(page, colour=False), html(page)):
        assert "docs/runbooks/rank-exit.md" in shown
    assert "Can pre run? NO" in html(page)


def test_a_run_without_an_engine_is_an_action(well):
    page = gather(well, NOW, NOW - DAY_S, run_status(engine=False), 60)
    assert page.action_items[0].do == "superv attach pre"


# --- forms ---


class Reader(HTMLParser):
    """Whether a page is well formed, and what it fetches and links to."""

    VOID = ("meta", "link", "line", "path", "circle", "rect", "br")

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.ids, self.words = [], [], [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                assert value not in self.ids
                self.ids.add(value)
            if name in ("href", "src"):
                self.links.append(value)
            assert not name.startswith("on")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in self.VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def read(shown):
    reader = Reader()
    reader.feed(shown)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_is_whole_and_fetches_nothing(page):
    shown = html(page)
    reader = read(shown)
    assert "script" not in reader.tags
    assert {link for link in reader.links if not link.startswith("#")} == {"data:,"}
    assert {link[1:] for link in reader.links if link.startswith("#")} <= reader.ids
    assert "url(" not in shown
    assert "@import" not in shown
    assert reader.tags.count("figure") == len(page.trends)
    words = " ".join(" ".join(reader.words).split())
    assert "none is lost, none says" in words  # what gpu.handle looks at, in its own words


def test_text_keeps_to_its_columns_and_its_colours_can_be_left_out(page):
    plain_text = text(page, colour=False)
    assert "\x1b" not in plain_text
    assert max(map(len, plain_text.splitlines())) <= 100
    coloured = text(page, colour=True)
    assert re.sub(r"\x1b\[[0-9]*m", "", coloured) == plain_text
    assert re.search(r"node-\[041-063\] +failed +\. \. \. \. F", plain_text)


def hostile(fleet):
    found = report(1, NOW)
    bad = finding(
        "fs.local",
        Status.FAIL,
        on=EVIL,
        seen=EVIL + "y" * 5000,
        expected=EVIL,
        fix="z" * 5000,
        shared=EVIL,
    )
    strange = replace(found, node=EVIL, findings=(bad, finding(EVIL, Status.WARN, seen=EVIL)))
    fleet.record([found, strange], f"run {EVIL}")
    fleet.exclude(node_name(2), "w" * 5000 + " " + EVIL, EVIL, NOW, None)
    fleet.drained(EVIL, EVIL, NOW)
    fleet.strike(EVIL, "run", EVIL, NOW)
    told = [claim(node_name(2), who=EVIL, run=EVIL, reason="w" * 5000 + EVIL)]
    run = run_status(reason=EVIL, name=EVIL)
    return gather(fleet, NOW + 60, NOW - DAY_S, run, 60, told)


def test_hostile_words_are_words(empty):
    page = hostile(empty)
    shown = html(page)
    assert set(read(shown).tags).isdisjoint({"script", "img", "iframe"})
    assert "&lt;script&gt;" in shown
    for form in (shown, text(page, colour=False), markdown(page)):
        assert "\x1b" not in form
        assert "\u202e" not in form
        assert max(map(len, re.findall("[wyz]+", form))) <= LONGEST
    ticket = markdown(page)
    assert "<script" not in ticket
    assert not re.search(r"(?<!\\)\]\(", ticket)
    assert not re.search(r"@ops|http://", ticket)
    assert max(map(len, text(page, colour=False).splitlines())) <= 100


def test_a_ticket_has_tables_of_as_many_columns_as_their_heads(page):
    ticket = markdown(page)
    assert ticket.startswith("## FAIL: 36 of 63 nodes can be used")
    rows = [line for line in ticket.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert widths == {4, 6}
    assert plain("a|b*c") == r"a\|b\*c"


def test_the_document_has_a_schema_and_plain_values(page):
    told = json.loads(json.dumps(document(page)))
    assert told["schema"] == 1
    assert {"hands", "fine", "quiet"} < set(told)  # schema 1's words, though the fields have others
    assert told["verdict"]["usable"] == 36
    assert told["problems"][0]["shared"] == "nfs server 10.0.0.5"
    assert told["rows"][0]["cells"]["nfs"]["status"] == "FAIL"
    remaps = next(t for t in told["trends"] if t["title"].startswith("Rows"))
    assert "rest" not in remaps
    assert remaps["outliers"][0]["points"][-1]["value"] == 254


def test_the_documentation_names_every_key(page):
    from tests.unit.test_docs import DOCS

    quoted = re.findall(r"`([^`]+)`", (DOCS / "report-json.md").read_text())
    named = {word for part in quoted for word in re.findall(r"[a-z_]+", part)}
    told = document(page)
    keys = {*told, *told["verdict"]}
    for part in ("hands", "rows", "problems", "changes", "exclusions", "drains", "offenders"):
        keys |= set(told[part][0])
    keys |= (
        {field.name for field in (*fields(Slower), *fields(NodeClaim), *fields(NodesOut))}
        | set(told["trends"][0])
        | set(told["rows"][0]["cells"]["nfs"])
    )
    assert keys <= named


def test_every_check_has_a_column():
    registered()
    strangers = {area_of(name) for name in REGISTERED} - AREAS.keys()
    assert strangers == set()
    assert area_of("clock") == "kernel"
    assert area_of("clock.events") == "heat"
    assert area_of("mine.own") == "mine"


# --- plots ---


def points(*values, step=HOUR_S, start=NOW):
    return tuple(Point(at=start + i * step, value=v, on="") for i, v in enumerate(values))


def trend(rest, outliers=(), unit=""):
    every = [p for line in rest.values() for p in line] + [p for o in outliers for p in o.points]
    return Trend(
        title="x",
        unit=unit,
        nodes=len(rest) + len(outliers),
        lowest=min(every, key=lambda p: p.value),
        lowest_node="a",
        highest=max(every, key=lambda p: p.value),
        highest_node="a",
        median=0.0,
        outliers=outliers,
        rest=rest,
    )


def test_a_line_breaks_where_looks_are_missing():
    line = (*points(1, 2, 3), *points(4, 5, start=NOW + 20 * HOUR_S))
    drawn = chart(trend({"a": line}), NOW, NOW + DAY_S)
    assert drawn.rest.count("M") == 2
    alone = (*points(1, 2, 3), *points(4, start=NOW + 20 * HOUR_S))
    drawn = chart(trend({"a": alone}), NOW, NOW + DAY_S)
    assert (drawn.rest.count("M"), len(drawn.rest_dots)) == (1, 1)


def test_names_beside_lines_do_not_lie_on_each_other():
    odd = tuple(
        Outlier(node=f"n{i}", worst=points(90)[0], points=points(90 + i / 100, 90))
        for i in range(4)
    )
    drawn = chart(trend({"a": points(40, 41)}, odd), NOW, NOW + DAY_S)
    heights = sorted(line.label for line in drawn.lines)
    assert all(b - a >= LABEL_APART for a, b in itertools.pairwise(heights))
    assert heights[0] >= TOP
    assert heights[-1] <= HEIGHT
    assert drawn.right < WIDTH - 50


@pytest.mark.parametrize(
    "values", [(0, 0), (5,), (-3, 4), (1e9, 2e12), (0.0001, 0.0002), (41, 91), (1e-15, 1e-12)]
)
def test_the_axis_holds_all_that_is_drawn(values):
    drawn = chart(trend({"a": points(*values)}, unit="B"), NOW, NOW + DAY_S)
    for x, y in (drawn.lowest, drawn.highest):
        assert LEFT <= x <= drawn.right <= WIDTH
        assert TOP <= y <= HEIGHT
    assert 2 <= len(drawn.y_ticks) <= 7
    assert len({tick.text for tick in drawn.y_ticks}) == len(drawn.y_ticks)
    assert 2 <= len(drawn.x_ticks) <= 6


def test_amounts_have_the_prefix_that_people_use():
    assert amount(0.0032, "s") == "3.2 ms"
    assert amount(3 * 2**30, "B") == "3 GiB"
    assert amount(2.5 * 2**20, "B/s") == "2.5 MiB/s"
    assert amount(254.0, "") == "254"
    assert amount(86.0, "°C") == "86 °C"
    assert one_line("a\n b\x00", 9) == "a b\N{MIDDLE DOT}"


# --- the command ---


@pytest.fixture
def site(path, tmp_path, monkeypatch):
    (tmp_path / "site.yaml").write_text(f"state_dir: {tmp_path}\nfleet_file: {path}\n")
    monkeypatch.setenv("SUPERV_SITE", str(tmp_path / "site.yaml"))
    return tmp_path


def call(*words):
    return CliRunner().invoke(command, words, catch_exceptions=False)


def test_the_ending_of_the_file_says_the_form(site):
    for name, begins in (("r.html", "<!DOCTYPE html>"), ("r.json", "{"), ("r.md", "## ")):
        assert call("--output", str(site / name)).exit_code == 0
        assert (site / name).read_text().startswith(begins)
    assert call("--format", "md", "--output", str(site / "r.html")).exit_code == 0
    assert (site / "r.html").read_text().startswith("## ")
    assert sorted(p.name for p in site.iterdir() if p.name.startswith(".")) == []


def test_the_command_prints_text(site):
    shown = call("--since", "1w").output
    assert shown.startswith("superv report of ")
    assert "\x1b" not in shown
    assert json.loads(call("--format", "json").output)["schema"] == 1


def test_mistakes_are_told(site, monkeypatch):
    for words, says_so in (
        (("--since", "soon"), "write 90m"),
        (("--run", "nope"), "no run 'nope'"),
        (("--output", str(site / "none/r.html")), "can't be written"),
    ):
        with pytest.raises(UserError, match=re.escape(says_so)):
            call(*words)
    monkeypatch.setenv("SUPERV_SITE", str(site / "other.yaml"))
    (site / "other.yaml").write_text(f"state_dir: {site}/other\n")
    with pytest.raises(UserError, match="no fleet record yet"):
        call()
