"""Host lists: what Slurm writes is read, and what is written names the same nodes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.nodeset import MAX_NAMES, compress, expand


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("login", ("login",)),
        ("n[01-03,7]", ("n01", "n02", "n03", "n7")),
        ("n[1-3]", ("n1", "n2", "n3")),
        ("n[8-11]", ("n8", "n9", "n10", "n11")),
        ("n[098-101]", ("n098", "n099", "n100", "n101")),
        ("a,b[1],c", ("a", "b1", "c")),
        ("n[2,1,2],n1", ("n2", "n1")),
        ("gpu-a[1-2]-ib[0-1]", ("gpu-a1-ib0", "gpu-a1-ib1", "gpu-a2-ib0", "gpu-a2-ib1")),
        ("r[1-2]n[09-10].x", ("r1n09.x", "r1n10.x", "r2n09.x", "r2n10.x")),
    ],
)
def test_expand(text: str, names: tuple[str, ...]) -> None:
    assert expand(text) == names


@pytest.mark.parametrize(
    "text",
    [
        *("n[", "n]", "n[1", "n[]", "n[1-]", "n[-1]", "n[a]", "n[2-1]", "n[01-1]", "n[1,,2]"),
        *(",", "a,", ",a", "a,,b", "a b", "a\nb", "n[[1]]", "a/b", "(null)", "n[1 -2]", "n$(x)"),
        *("n[0-99999999999]", "a[0-999]b[0-999]", f"n[0-{MAX_NAMES}]", "n[²]"),
    ],
)
def test_malformed_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^host list ") as error:
        expand(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["n1"], "n1"),
        (["n3", "n1", "n2", "n2"], "n[1-3]"),
        (["n08", "n09", "n10", "n7"], "n[7,08-10]"),
        (["n9", "n09", "n10"], "n[9,09-10]"),
        (["a2-ib0", "a1-ib0", "a1-ib1", "a2-ib1"], "a1-ib[0-1],a2-ib[0-1]"),
        (["a1-ib0", "a2-ib0", "a1-ib1"], "a1-ib[0-1],a2-ib0"),
        (["ip-10-0-1-5", "ip-10-0-2-5"], "ip-10-0-1-5,ip-10-0-2-5"),
        (["ip-10-0-1-5", "ip-10-0-1-6", "ip-10-0-2-5"], "ip-10-0-1-[5-6],ip-10-0-2-5"),
        (["n1-ib", "n0-ib", "n10-ib"], "n0-ib,n1-ib,n10-ib"),
        (["n1x03y", "n1x04y"], "n1x03y,n1x04y"),
        (["r1n09.x", "r1n10.x"], "r1n09.x,r1n10.x"),
        (["n", "n1", "n2"], "n,n[1-2]"),
        (["n10", "n2", "m1"], "m1,n[2,10]"),
        (["0", "1", "00"], "[0-1,00]"),
    ],
)
def test_compress(names: list[str], text: str) -> None:
    assert compress(names) == text


@pytest.mark.parametrize("name", ["", "a b", "a,b", "n[1]", "a/b", "ü"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="is not a node name"):
        compress([name])


NAMES = st.from_regex(r"\A(n|gpu-a|r)[0-9]{1,3}((-ib|n)[0-9]{1,2})?\Z").filter(str.isascii)


@given(st.lists(NAMES, max_size=60))
def test_round_trip(names: list[str]) -> None:
    there = compress(names)
    back = expand(there)
    assert set(back) == set(names)
    assert len(back) == len(set(back))
    assert compress(reversed(back)) == there


@given(st.lists(st.text("ab-_.0189", min_size=1, max_size=12), max_size=20))
def test_no_text_follows_a_bracket(names: list[str]) -> None:
    """slurmctld up to 23.02 refuses that."""
    assert not re.search(r"\](?!,|\Z)", compress(names))


@given(st.lists(st.text("ab-_.0189", min_size=1, max_size=12), max_size=20))
def test_round_trip_of_odd_names(names: list[str]) -> None:
    assert set(expand(compress(names))) == set(names)


@given(st.text("n01,-[]", max_size=14))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        names = expand(text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert set(expand(compress(names))) == set(names)
