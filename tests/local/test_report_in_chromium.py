"""The report's page in a real browser: how wide it is, what it fetches, dark and on paper."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import shutil
import signal
import subprocess

import pytest

from healthchecks.frame.check import Status
from supervisor.fleet.record import DAY_S, Fleet
from supervisor.report.data import gather
from supervisor.report.html import html as page_of
from tests.hardware.weeks import NOW, finding, node_name, report, weeks

CHROMIUM = shutil.which("chromium")
DEADLINE_S = 100
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
# What a page says of itself to the page that frames it.
PROBE = """<script>
addEventListener("load", () => {
  const small = [...document.querySelectorAll("svg text")].filter(
    t => t.getBoundingClientRect().height < 8).length;
  const covered = [...document.querySelectorAll("main *")].filter(
    e => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1).length;
  parent.postMessage({
    inner: innerWidth, wide: document.documentElement.scrollWidth, small, covered,
    fetched: performance.getEntriesByType("resource").map(r => r.name),
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    ground: getComputedStyle(document.body).backgroundColor,
    figures: document.querySelectorAll("figure svg path").length,
  }, "*");
});
</script>"""
FRAME = """<!DOCTYPE html><meta charset="utf-8"><body>%s<pre id="told"></pre><script>
const told = [];
addEventListener("message", e => {
  told.push(e.data);
  document.getElementById("told").textContent = JSON.stringify(told);
});
</script>"""

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here; apt-get install chromium"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pages, each as it is and with a probe in place of its policy."""
    path = tmp_path_factory.mktemp("pages")
    with Fleet(path / "busy.db") as fleet:
        weeks(fleet, hours=6)
        fleet.exclude(node_name(40), "link 3 flaps", "ops", NOW - 3 * DAY_S, NOW + DAY_S)
        write(path, "busy", fleet)
    with Fleet(path / "hostile.db") as fleet:
        long = "<script>document.title='taken'</script>" + "y" * 5000
        bad = finding("fs.local", Status.FAIL, on="z" * 300, seen=long, fix=long, expected=long)
        strange = type(report(1, NOW))(node="w" * 300, at=NOW, findings=(bad,))
        fleet.record([report(1, NOW), strange], "x" * 300)
        fleet.exclude(node_name(2), long, "v" * 300, NOW, None)
        write(path, "hostile", fleet)
    return path


def write(path, name, fleet):
    page = page_of(gather(fleet, NOW + 60, NOW - DAY_S))
    (path / f"{name}.html").write_text(page)
    probed, times = POLICY.subn("", page)
    assert times == 1
    (path / f"{name}-probed.html").write_text(probed.replace("</body>", f"{PROBE}</body>"))


def chromium(folder, *options):
    """Its output and its log; every process of it is gone afterwards."""
    profile = folder / "profile"
    started = subprocess.Popen(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-breakpad", "--disable-background-networking"),
            *("--disable-component-update", "--hide-scrollbars", "--enable-logging=stderr"),
            f"--user-data-dir={profile}",
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "HOME": str(folder)},
    )
    try:
        out, log = started.communicate(timeout=DEADLINE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    assert started.returncode == 0, log[-2000:]
    return out, log


def framed(folder, *options):
    """What the pages say of themselves at the widths of a phone and of a desk, and the log."""
    pages = ("busy", "hostile")
    frames = [
        f'<iframe src="{page}-probed.html" width="{width}" height="900"></iframe>'
        for page in pages
        for width in (390, 1280)
    ]
    frames += [f'<iframe src="{page}.html" width="390" height="900"></iframe>' for page in pages]
    (folder / "frame.html").write_text(FRAME % "".join(frames))
    out, log = chromium(
        folder,
        *options,
        "--window-size=1400,1000",
        "--virtual-time-budget=4000",
        "--dump-dom",
        (folder / "frame.html").as_uri(),
    )
    told = re.search(r'<pre id="told">(.*?)</pre>', out, re.S)
    return json.loads(html.unescape(told[1])), log


def complaints(log):
    return [line for line in log.splitlines() if "CONSOLE" in line]


def test_the_page_fits_a_phone_and_a_desk_and_fetches_nothing(folder):
    told, log = framed(folder)
    assert sorted(page["inner"] for page in told) == [390, 390, 1280, 1280]
    for page in told:
        assert page["wide"] <= page["inner"]
        assert page["covered"] == 0
        assert page["fetched"] == []
        assert page["small"] == 0
        assert (page["dark"], page["ground"]) == (False, "rgb(255, 255, 255)")
    assert max(page["figures"] for page in told) >= 6
    assert complaints(log) == []


@pytest.mark.soak
def test_the_page_is_dark_for_readers_who_want_it(folder):
    told, log = framed(folder, "--blink-settings=preferredColorScheme=0")
    assert len(told) == 4
    for page in told:
        assert page["wide"] <= page["inner"]
        assert (page["dark"], page["ground"]) == (True, "rgb(19, 19, 22)")
    assert complaints(log) == []


@pytest.mark.soak
@pytest.mark.parametrize("name", ["busy", "hostile"])
def test_the_page_can_be_printed(folder, name):
    paper = folder / f"{name}.pdf"
    _, log = chromium(folder, f"--print-to-pdf={paper}", (folder / f"{name}.html").as_uri())
    assert complaints(log) == []
    printed = paper.read_bytes()
    assert printed.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type */Page\b", printed)) <= 12


@pytest.mark.soak
def test_a_screenshot_is_made_as_the_documentation_says(folder):
    picture = folder / "report.png"
    chromium(
        folder,
        "--window-size=1280,2400",
        f"--screenshot={picture}",
        (folder / "busy.html").as_uri(),
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
