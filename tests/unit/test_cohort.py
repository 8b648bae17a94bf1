"""Nodes compared with their kind, causes that many share: over generated cohorts of 63 nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from healthchecks.frame.check import Blame, Check, Result, Status
from healthchecks.frame.registry import registered
from healthchecks.frame.report import Finding, Report
from healthchecks.many.causes import FindingCause
from healthchecks.many.cohort import ComparedReports, hardware_classes, judge, pin
from supervisor.core.errors import UserError
from supervisor.core.nodeset import compress

GPU = "NVIDIA B200"
Change = Callable[[str, Result], Result]


def a_check(name: str, cohort: Status | None) -> Check:
    return Check(
        name=name,
        run=lambda ctx: Result(status=Status.OK, seen=""),
        tags=frozenset({"preflight"}),
        deadline_s=1.0,
        call_deadline_s=None,
        resource="host",
        targets=None,
        on_timeout=Status.UNKNOWN,
        timeout_fix="",
        blame=Blame.NODE,
        cohort=cohort,
        drains=True,
        untested="",
    )


CHECKS = {
    name: a_check(name, cohort)
    for name, cohort in {
        "versions": Status.WARN,
        "gpu.count": Status.FAIL,
        "cpu.layout": Status.FAIL,
        "nfs.mounted": Status.FAIL,
        "fs.local": None,
    }.items()
}


def ok(seen: str = "fine", **facts: str) -> Result:
    return Result(status=Status.OK, seen=seen, facts=facts)


def bad(status: Status, seen: str, **more: object) -> Result:
    return Result(status=status, seen=seen, **more)  # type: ignore[arg-type]


def healthy() -> dict[str, Result]:
    return {
        "versions": ok(gpu=GPU, driver="580.105", cuda="13.0"),
        "gpu.count": ok(gpus="8"),
        "cpu.layout": ok(model="Xeon 8570", digest="abc"),
        "nfs.mounted[/data]": ok(source="10.0.0.5:/data", nconnect="8"),
        "fs.local[/]": ok(),
    }


def cohort(
    count: int = 63, changes: Mapping[int, Mapping[str, Result | None]] | None = None
) -> dict[str, Report]:
    """Healthy nodes, but for the findings that are changed (None: left out) by node's number."""
    reports = {}
    for number in range(1, count + 1):
        found = {**healthy(), **(changes or {}).get(number, {})}
        findings = []
        for name, result in found.items():
            check, _, on = name.partition("[")
            if result is not None:
                findings.append(Finding(check=check, on=on.removesuffix("]"), result=result))
        reports[f"n{number}"] = Report(node=f"n{number}", at=0.0, findings=tuple(findings))
    return reports


def added(judged: ComparedReports) -> dict[str, list[tuple[str, Status, str]]]:
    """What the comparison added, by node."""
    return {
        node: found
        for node, report in judged.reports.items()
        if (
            found := [
                (f.name, f.status, f.result.seen)
                for f in report.findings
                if f.on.endswith(("cohort", "golden"))
            ]
        )
    }


def test_a_cohort_that_is_alike_has_nothing_to_say() -> None:
    judged = judge(cohort(), CHECKS)
    assert (judged.causes, added(judged), judged.status) == ((), {}, Status.OK)
    assert {kind: len(nodes) for kind, nodes in judged.hardware_classes.items()} == {GPU: 63}


def test_the_odd_ones_out_are_named_with_the_checks_own_severity() -> None:
    old = ok(gpu=GPU, driver="570.133", cuda="13.0")
    judged = judge(
        cohort(
            changes={7: {"versions": old}, 9: {"cpu.layout": ok(model="Xeon 8570", digest="x")}}
        ),
        CHECKS,
    )
    assert added(judged) == {
        "n7": [("versions[cohort]", Status.WARN, "driver 570.133")],
        "n9": [("cpu.layout[cohort]", Status.FAIL, "digest x")],
    }
    fail, warn = judged.causes
    assert (fail.nodes, fail.status, warn.nodes) == (("n9",), Status.FAIL, ("n7",))
    assert warn.expected == "driver 580.105, as 62 of the 63 nodes of its kind (NVIDIA B200)"


def test_a_check_without_a_cohort_rule_is_not_compared() -> None:
    assert added(judge(cohort(changes={3: {"fs.local[/]": ok(kind="xfs")}}), CHECKS)) == {}


@pytest.mark.parametrize(("count", "named"), [(3, ["n1"]), (2, []), (1, [])])
def test_it_takes_three_nodes_to_name_one(count: int, named: list[str]) -> None:
    judged = judge(cohort(count, {1: {"gpu.count": ok(gpus="7")}}), CHECKS)
    assert list(added(judged)) == named
    assert bool([c for c in judged.causes if not c.nodes]) is (count == 2)


def test_where_no_value_has_two_thirds_nobody_is_named() -> None:
    half = {n: {"versions": ok(gpu=GPU, driver="575.57", cuda="13.0")} for n in range(1, 31)}
    judged = judge(cohort(changes=half), CHECKS)
    assert added(judged) == {}
    (split,) = judged.causes
    assert (split.status, split.nodes, judged.status) == (Status.UNKNOWN, (), Status.UNKNOWN)
    assert "580.105 on n[31-63] and 575.57 on n[1-30]" in split.seen[0][0]


def test_a_fact_that_many_do_not_tell_is_unknown_and_names_nobody() -> None:
    mute = {n: {"gpu.count": ok()} for n in range(1, 41)}
    mute[50] = {"gpu.count": ok(gpus="7")}
    judged = judge(cohort(changes=mute), CHECKS)
    assert added(judged) == {}
    assert [(c.status, c.nodes) for c in judged.causes] == [(Status.UNKNOWN, ())]


def test_one_that_lacks_what_the_others_have_is_odd() -> None:
    judged = judge(
        cohort(
            changes={
                4: {"gpu.count": Result(status=Status.SKIP, seen="no NVIDIA GPU")},
                5: {"nfs.mounted[/data]": None, "nfs.mounted[/home]": ok(source="x")},
            }
        ),
        CHECKS,
    )
    assert added(judged) == {
        "n4": [("gpu.count[cohort]", Status.FAIL, "no gpus: no NVIDIA GPU")],
        "n5": [
            (
                "nfs.mounted[/data cohort]",
                Status.FAIL,
                "nfs.mounted[/data] is not there",
            )
        ],
    }


def test_what_only_a_few_have_is_theirs_and_compared_among_them() -> None:
    few = {n: {"nfs.mounted[/scratch]": ok(nconnect="8")} for n in range(1, 21)}
    few[3] = {"nfs.mounted[/scratch]": ok(nconnect="1")}
    judged = judge(cohort(changes=few), CHECKS)
    assert list(added(judged)) == ["n3"]
    assert [c.nodes for c in judged.causes] == [("n3",)]


@pytest.mark.parametrize("status", [Status.FAIL, Status.UNKNOWN])
def test_a_node_whose_own_finding_says_it_is_not_told_twice(status: Status) -> None:
    judged = judge(cohort(changes={6: {"gpu.count": bad(status, "7 GPUs")}}), CHECKS)
    assert added(judged) == {}
    assert [(c.check, c.nodes) for c in judged.causes] == [("gpu.count", ("n6",))]


def test_kinds_are_compared_apart_and_a_node_without_gpus_stays_with_its_fellows() -> None:
    hopper = {
        "versions": ok(gpu="NVIDIA H100", driver="550", cuda="12.4"),
        "cpu.layout": ok(model="EPYC 9654", digest="e"),
    }
    gone = {"versions": Result(status=Status.SKIP, seen="no NVIDIA GPU")}
    reports = cohort(20, {**{n: hopper for n in range(1, 6)}, 2: {**hopper, **gone}, 11: gone})
    kinds = {kind: compress(nodes) for kind, nodes in hardware_classes(reports).items()}
    assert kinds == {"NVIDIA H100": "n[1-5]", GPU: "n[6-20]"}
    assert list(added(judge(reports, CHECKS))) == ["n2", "n11"]


def test_a_pinned_profile_beats_the_cohort() -> None:
    reports = cohort(changes={8: {"versions": ok(gpu=GPU, driver="581.1", cuda="13.0")}})
    golden = {"versions": {"driver": "581.1"}}
    judged = judge(reports, CHECKS, golden)
    assert "n8" not in added(judged) and len(added(judged)) == 62
    (cause,) = judged.causes
    assert (cause.check, cause.common, len(cause.nodes)) == ("versions[golden]", True, 62)
    other = judge(reports, CHECKS, {"versions": {"driver": "1", "gpu": "NVIDIA H100"}})
    assert list(added(other)) == ["n8"], "a profile of another kind says nothing here"


def test_the_majority_can_be_pinned_and_then_holds() -> None:
    reports = cohort(changes={8: {"versions": ok(gpu=GPU, driver="581.1", cuda="13.0")}})
    profile = pin(reports, CHECKS)
    assert profile["versions"] == {"gpu": GPU, "driver": "580.105", "cuda": "13.0"}
    assert profile["nfs.mounted[/data]"]["nconnect"] == "8"
    judged = judge({"n8": reports["n8"]}, CHECKS, profile)
    assert added(judged) == {"n8": [("versions[golden]", Status.WARN, "driver 581.1")]}


def test_nodes_of_two_kinds_are_not_pinned_together() -> None:
    other = {"versions": ok(gpu="NVIDIA H100", driver="550")}
    with pytest.raises(UserError, match="several kinds"):
        pin(cohort(10, {1: other, 2: other}), CHECKS)
    with pytest.raises(UserError, match="nothing to pin"):
        pin({}, CHECKS)


def causes(
    changes: Mapping[int, Mapping[str, Result | None]], count: int = 63
) -> list[FindingCause]:
    return list(judge(cohort(count, changes), CHECKS).causes)


def test_a_dead_server_is_one_cause() -> None:
    dead = bad(Status.FAIL, "10.0.0.5 does not answer", shared="nfs server 10.0.0.5")
    gate = bad(Status.UNKNOWN, "not tried", shared="nfs server 10.0.0.5")
    changes = {n: {"nfs.mounted[/data]": dead, "fs.local[/]": gate} for n in range(1, 61)}
    changes[61] = {"fs.local[/]": gate}
    judged = judge(cohort(changes=changes), CHECKS)
    (cause,) = judged.causes
    assert (cause.shared, len(cause.nodes), cause.of) == ("nfs server 10.0.0.5", 61, 63)
    assert (cause.status, cause.check) == (Status.FAIL, "nfs.mounted[/data]")
    assert cause.checks == ("nfs.mounted", "fs.local")
    assert judged.reports["n61"].status is Status.UNKNOWN, "findings of nodes stay attached"


def test_the_same_on_three_nodes_is_one_cause_and_on_two_of_many_is_not() -> None:
    full = {n: {"fs.local[/]": bad(Status.FAIL, f"{n} % used", fix="rm")} for n in (91, 7, 8)}
    full[9] = full.pop(91)
    (cause,) = causes(full)
    assert (cause.common, cause.nodes, cause.fix) == (True, ("n7", "n8", "n9"), "rm")
    assert [nodes for _, nodes in cause.seen] == [("n7",), ("n8",), ("n9",)]
    del full[9]
    assert [(c.common, c.nodes) for c in causes(full)] == [(False, ("n7",)), (False, ("n8",))]


def test_failures_and_doubts_of_one_check_are_told_apart_and_the_worst_comes_first() -> None:
    changes: dict[int, dict[str, Result | None]] = {
        n: {"gpu.count": bad(Status.UNKNOWN, "NVML does not answer")} for n in range(1, 9)
    }
    changes[40] = {"gpu.count": bad(Status.FAIL, "7 of 8")}
    changes[41] = {"fs.local[/]": bad(Status.WARN, "81 %")}
    told = [(c.status, c.nodes) for c in causes(changes)]
    assert told[0] == (Status.FAIL, ("n40",))
    assert told[1][0] is Status.UNKNOWN and len(told[1][1]) == 8
    assert told[2] == (Status.WARN, ("n41",))


def test_nodes_that_gave_no_report_are_in_nobodys_cohort() -> None:
    reports = cohort()
    silent = Finding(check="node.answers", result=bad(Status.FAIL, "no answer"))
    for name in ("n5", "n6", "n7"):
        reports[name] = Report(node=name, at=0.0, findings=(silent,))
    judged = judge(reports, CHECKS)
    assert [(c.check, c.nodes, c.common) for c in judged.causes] == [
        ("node.answers", ("n5", "n6", "n7"), True)
    ]


def test_checks_that_can_not_ask_for_one_reason_are_one_cause() -> None:
    from healthchecks.many.causes import causes_of

    why = "gpu3: not asked: GPU is lost (15); see gpu.handle"
    blind = [
        Finding(check=f"ecc.{n}", result=Result(status=Status.UNKNOWN, seen=why)) for n in range(5)
    ]
    lost = Finding(check="gpu.handle", result=Result(status=Status.FAIL, seen="gpu3: lost"))
    other = Finding(check="xid", result=Result(status=Status.UNKNOWN, seen="may not be read"))
    report = Report(node="n1", at=0.0, findings=(lost, *blind, other))
    causes = {
        c.title: c for c in causes_of({"n1": report, "n2": Report(node="n2", at=0.0, findings=())})
    }
    assert set(causes) == {"gpu.handle", "5 checks (ecc.0, ecc.1 …)", "xid"}
    assert causes["5 checks (ecc.0, ecc.1 …)"].nodes == ("n1",)


def test_the_slow_node_of_a_full_width_test_is_found_by_comparison() -> None:
    from healthchecks.frame.check import Metric

    def at_once(node: str, rate: float) -> Report:
        metrics = {}
        for way in ("write", "read"):
            values = {"throughput": rate, "bytes": 1e9, "began": 10.0, "took": 1e9 / rate}
            metrics |= {f"{way}_{n}": Metric(value=v) for n, v in values.items()}
        result = Result(status=Status.OK, seen="fine", metrics=metrics)
        return Report(node=node, at=0.0, findings=(Finding(check="storage.width", result=result),))

    reports = {f"n{i}": at_once(f"n{i}", 1e9 if i != 3 else 3e8) for i in range(1, 6)}
    judged = judge(reports, registered())
    (slow,) = judged.reports["n3"].having(Status.FAIL)
    assert slow.name == "storage.width[cohort]" and "30 % of the median" in slow.result.seen
    assert judged.reports["n1"].status is Status.OK
    assert judge({n: r for n, r in reports.items() if n != "n3"}, registered()).notes


def test_the_model_of_any_makers_gpus_names_a_class() -> None:
    cpu = ok(model="EPYC 9654")
    amd = {"accel.versions": ok(gpu="AMD Instinct MI300X"), "cpu.layout": cpu}
    changes = {n: {"versions": None, **amd} for n in range(1, 6)}
    judged = judge(cohort(9, changes=changes), CHECKS)
    assert {kind: len(nodes) for kind, nodes in judged.hardware_classes.items()} == {
        "AMD Instinct MI300X": 5,
        GPU: 4,
    }
