"""Each limit from both sides: GPUs, by what NVML says of the fourth of them."""

from __future__ import annotations

from typing import Any

from checks import Case, Change, both, wrote
from limits import FAIL, OK, UNKNOWN, WARN, limit

from tests.hardware.nvml import SCRIPT
from tests.hardware.tree import GPU_BDFS

NOW_S = 1_764_000_000.0
KEY = "GPU-0b200000-0000-0000-0000-000000000003"
DAY_S = 86_400.0


def says(*lines: str) -> Change:
    """NVML answers as these lines say, and no others."""
    return lambda tree: tree.write(SCRIPT, "\n".join(lines))


def field(number: int, link: int | None = None) -> Any:
    """A field of NVML has a value."""
    scope = "" if link is None else f".{link}"
    return lambda value: says(f"nvmlDeviceGetFieldValues/{number}{scope} 3 value {value}")


def call(name: str) -> Any:
    return lambda value: says(f"{name} 3 value {value}")


REASONS = call("nvmlDeviceGetCurrentClocksEventReasons")
SLOW = REASONS(64)
MARGIN = call("nvmlDeviceGetMarginTemperature")
REPLAYS = call("nvmlDeviceGetPcieReplayCounter")

ACTIONS = limit(
    "gpu.recovery_action",
    "what field 230 says:",
    field(230),
    {0: OK, 1: FAIL, 2: FAIL, 3: FAIL, 4: FAIL, 5: WARN, 6: FAIL, 7: FAIL, 8: FAIL},
)

CLOCKS = [
    *limit(
        "clock.events",
        "reason",
        REASONS,
        {1: OK, 4: OK, 32: OK, 8: WARN, 64: WARN, 128: WARN, 7: OK, 256: OK},
    ),
    *(
        Case(
            check="clock.events",
            name=f"looks with a slowdown {len(ago)}, the first {ago[0]} s ago",
            earlier=[(float(at), SLOW) for at in ago[:-1]],
            change=SLOW,
            status=status,
        )
        for ago, status in (
            ((400, 300, 200, 100, 0), WARN),
            ((500, 400, 300, 200, 100, 0), FAIL),
            ((599, 400, 300, 200, 100, 0), FAIL),
            ((600, 400, 300, 200, 100, 0), WARN),
        )
    ),
    *(
        case
        for number, at_most in ((270, WARN), (271, WARN), (269, OK))
        for case in limit(
            "clock.events",
            f"ns of a minute, field {number}",
            field(number),
            {600_000_000: OK, 600_000_600: at_most},
            earlier=[(60.0, field(number)(0))],
        )
    ),
    *limit("clock.max", "SM clock", call("nvmlDeviceGetMaxClockInfo/1"), {1965: OK, 1964: WARN}),
    *limit("clock.max", "memory clock", call("nvmlDeviceGetMaxClockInfo/2"), {1: WARN}),
    *limit("clock.max", "application clock", call("nvmlDeviceGetClock/1.1"), {1964: WARN}),
    *limit("thermal", "margin", MARGIN, {6: OK, 5: WARN, 0: WARN, -9: WARN}),
    *(
        Case(
            check="thermal",
            name=f"margin {margin} for {lasts_s:g} s",
            earlier=[(lasts_s, MARGIN(margin))],
            change=MARGIN(margin),
            status=status,
        )
        for margin, lasts_s, status in (
            (0, 60.0, FAIL),
            (0, 59.0, WARN),
            (1, 60.0, WARN),
            (1, 600.0, WARN),
        )
    ),
    *limit(
        "power.limit",
        "mW of a kW",
        call("nvmlDeviceGetEnforcedPowerLimit"),
        {990_000: OK, 989_999: WARN},
    ),
]

PCIE = [
    *limit("pcie.link", "lanes", call("nvmlDeviceGetCurrPcieLinkWidth"), {16: OK, 15: FAIL}),
    *limit(
        "pcie.link",
        "lanes of a driver that says none",
        lambda n: both(
            says("nvmlDeviceGetCurrPcieLinkWidth 3 rc 3"),
            wrote(f"sys/bus/pci/devices/{GPU_BDFS[3]}/current_link_width", str(n)),
        ),
        {16: OK, 15: FAIL},
    ),
    *limit(
        "pcie.link",
        "generation and why it is not higher",
        lambda x: says(
            f"nvmlDeviceGetCurrPcieLinkGeneration 3 value {x[0]}",
            f"nvmlDeviceGetCurrentClocksEventReasons 3 value {x[1]}",
        ),
        {(5, 0): OK, (4, 0): WARN, (4, 1): OK, (4, 2): WARN},
    ),
    *limit("pcie.errors", "fatal", field(180), {0: OK, 1: FAIL}),
    *limit(
        "pcie.errors", "non-fatal", field(179), {0: OK, 1: WARN}, earlier=[(60.0, field(179)(0))]
    ),
    *limit(
        "pcie.errors",
        "non-fatal in the kernel",
        lambda n: wrote(
            f"sys/bus/pci/devices/{GPU_BDFS[3]}/aer_dev_nonfatal", f"TOTAL_ERR_NONFATAL {n}"
        ),
        {0: OK, 1: WARN},
        earlier=[
            (
                60.0,
                wrote(
                    f"sys/bus/pci/devices/{GPU_BDFS[3]}/aer_dev_nonfatal", "TOTAL_ERR_NONFATAL 0"
                ),
            )
        ],
    ),
    *limit(
        "pcie.errors",
        "replays a minute that the site allows",
        REPLAYS,
        {1030: OK, 1031: WARN},
        earlier=[(60.0, REPLAYS(1000))],
        options={"replays": 30},
    ),
    *(
        case
        for generation, most in {1: 2, 2: 4, 3: 7, 4: 15, 5: 30, 6: 61}.items()
        for case in limit(
            "pcie.errors",
            f"replays a minute at generation {generation}",
            lambda n, generation=generation: says(
                f"nvmlDeviceGetCurrPcieLinkGeneration 3 value {generation}",
                f"nvmlDeviceGetPcieReplayCounter 3 value {n}",
            ),
            {1000 + most: OK, 1001 + most: WARN},
            earlier=[(60.0, REPLAYS(1000))],
        )
    ),
    *limit(
        "pcie.errors",
        "replays within two minutes",
        REPLAYS,
        {1061: OK, 1062: WARN},
        earlier=[(120.0, REPLAYS(1000))],
    ),
    *limit(
        "pcie.errors",
        "replays of a GPU that does not say its generation",
        lambda n: says(
            "nvmlDeviceGetCurrPcieLinkGeneration 3 rc 3",
            f"nvmlDeviceGetPcieReplayCounter 3 value {n}",
        ),
        {1030: OK, 1031: WARN},
        earlier=[(60.0, REPLAYS(1000))],
    ),
]

ERRORS = (161, 162, 206, 207, 208, 209, 210, 211, 214, 219, 221)
LINKS = [
    *(
        case
        for number in (*ERRORS, 213, 215, 163)
        for case in limit(
            "nvlink.errors",
            f"field {number}",
            field(number, 17),
            {7: OK, 8: FAIL if number in ERRORS else WARN},
            earlier=[(60.0, field(number, 17)(7))],
        )
    ),
    *limit(
        "nvlink.errors",
        "CRC errors a minute",
        field(163, 0),
        {5_999: WARN, 6_000: FAIL},
        earlier=[(60.0, field(163, 0)(0))],
    ),
    *limit(
        "nvlink.errors",
        "effective error rate, mantissa and exponent",
        lambda x: field(220, 3)(x[0] << 8 | x[1]),
        {(1, 12): OK, (2, 12): FAIL, (1, 11): FAIL, (9, 13): OK, (15, 255): OK},
        earlier=[(60.0, says())],
    ),
    *limit(
        "nvlink.errors",
        "symbol error rate, mantissa and exponent",
        lambda x: field(222, 3)(x[0] << 8 | x[1]),
        {(15, 238): OK, (15, 237): FAIL, (0, 237): OK, (1, 237): FAIL},
        earlier=[(60.0, says())],
    ),
    *(
        Case(
            check="nvlink.errors",
            name=f"recovered in {sum(before)} of {len(before)} looks and now {now - 7}",
            earlier=[(60.0, field(213, 0)(7))],
            change=field(213, 0)(now),
            memory={"boot": {f"{KEY}.recovered": before}},
            status=status,
        )
        for before, now, status in (
            ([True] * 14, 8, WARN),
            ([True] * 15, 8, FAIL),
            ([True] * 16 + [False] * 13, 7, FAIL),
            ([True] * 16 + [False] * 14, 7, OK),
        )
    ),
    *limit("nvlink.links", "MB/s of a link", field(164, 5), {53125: OK, 53124: FAIL, 53126: FAIL}),
    *limit("nvlink.links", "the last link", call("nvmlDeviceGetNvLinkState/17"), {1: OK, 0: FAIL}),
]


def remaps(corrected: int, uncorrected: int) -> Change:
    return says(f"nvmlDeviceGetRemappedRows 3 value {corrected} {uncorrected} 0 0")


def trend(days: float) -> dict[str, Any]:
    """No remap so many days ago."""
    return {"lasting": {KEY: [[NOW_S - days * DAY_S, 0.0, 0.0]]}}


COMPUTES = "nvmlDeviceGetComputeRunningProcesses_v3 3 value 4242 1000000"

MEMORY = [
    *(
        case
        for place, number, busy in (("DRAM", 2, WARN), ("SRAM", 7, FAIL))
        for case in limit(
            "ecc.unc_volatile",
            f"{place} errors while processes compute",
            lambda n, number=number: says(
                COMPUTES, f"nvmlDeviceGetMemoryErrorCounter/1.0.{number} 3 value {n}"
            ),
            {0: OK, 1: busy},
        )
    ),
    *limit("ecc.unc_volatile", "errors", call("nvmlDeviceGetMemoryErrorCounter/1.0.7"), {1: FAIL}),
    *limit(
        "remap.unc",
        "rows",
        lambda n: remaps(0, n),
        {511: OK, 512: FAIL},
    ),
    *limit(
        "remap.trend",
        "rows for corrected errors",
        lambda n: remaps(n, 0),
        {15: UNKNOWN, 16: WARN},
        memory=trend(27.9),
    ),
    *limit(
        "remap.trend",
        "rows for uncorrected errors",
        lambda n: remaps(0, n),
        {0: UNKNOWN, 1: WARN, 3: WARN, 4: FAIL},
        memory=trend(27.9),
    ),
    *(
        Case(
            check="remap.trend",
            name=f"{what} days ago",
            change=remaps(16, 0),
            memory={
                "lasting": {
                    KEY: [[NOW_S - days * DAY_S, 0.0, 0.0], [NOW_S - 20 * DAY_S, 10.0, 0.0]]
                }
            },
            status=WARN,
            seen=seen,
        )
        for what, days, seen in (
            ("all within", 28.0, "16 more rows remapped for correctable errors in 28.0"),
            ("one before the window", 40.0, "16 more rows"),
        )
    ),
    *limit(
        "pages.retired",
        "pages",
        lambda n: says(
            "nvmlDeviceGetRetiredPages * value 0",
            f"nvmlDeviceGetRetiredPages/0 3 value {n}",
            "nvmlDeviceGetRetiredPages/1 3 value 29",
        ),
        {30: OK, 31: FAIL},
    ),
    *limit(
        "ecc.corrected_rate",
        "corrected errors within 100 s",
        call("nvmlDeviceGetMemoryErrorCounter/0.0.7"),
        {10_000: OK, 10_001: WARN},
        earlier=[(100.0, says())],
    ),
    *(
        Case(
            check="ecc.corrected_rate",
            name=f"a look {ago:g} s ago",
            change=call("nvmlDeviceGetMemoryErrorCounter/0.0.7")(10**6),
            earlier=[(ago, call("nvmlDeviceGetMemoryErrorCounter/0.0.7")(0))],
            status=status,
        )
        for ago, status in ((59.0, UNKNOWN), (60.0, WARN))
    ),
]

GPU = [*ACTIONS, *CLOCKS, *PCIE, *LINKS, *MEMORY]
