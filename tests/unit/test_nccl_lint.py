"""Every rule of `superv nccl lint` finds its own examples of what is wrong, and not the others."""

from __future__ import annotations

import pytest

from ncclconf.lint import Example, LintRule, Subject, of_example, rules

RULES = {rule.id: rule for rule in rules()}


def hits(rule: LintRule, example: Example) -> list[str]:
    return [hit.seen for hit in rule.find(Subject(env=of_example(example), facts=example.facts))]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_finds_its_wrong_examples_and_none_of_the_right_ones(rule: LintRule) -> None:
    for example in rule.wrong:
        assert hits(rule, example), f"not found: {dict(example.env)} {example.raw!r}"
    for example in rule.right:
        assert not hits(rule, example), f"{dict(example.env)} {example.raw!r}"
    assert rule.wrong and rule.right and rule.source and rule.why and rule.fix
