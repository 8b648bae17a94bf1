"""Each limit from both sides: NFS."""

from __future__ import annotations

from checks import Case, Change, both
from healthy import logged
from limits import FAIL, OK, UNKNOWN, WARN, limit

from tests.hardware.tree_os import mountstats

WRITES = "1000 1000 0 1073741824 136000 2000 90000 93000 0"  # of the healthy node, so far
READS = "READ: 1000 1000 0 136000 1073741824 1000 50000 52000 0"


def counted(
    *,
    calls: int = 0,
    again: int = 0,
    timeouts: int = 0,
    queued_ms: int = 0,
    ms: int = 0,
    age: int = 864_060,
) -> Change:
    """A minute of WRITEs more."""
    n = 1000 + calls
    write = f"{n} {n + again} {timeouts} 1 1 {2000 + queued_ms} 90000 {93000 + ms} 0"
    return lambda tree: tree.write(
        "proc/self/mountstats", mountstats(write=write).replace("age:\t864000", f"age:\t{age}")
    )


def read(calls: int, queued_ms: int, ms: int) -> Change:
    """A minute of READs more."""
    n = 1000 + calls
    reads = f"READ: {n} {n} 0 136000 1073741824 {1000 + queued_ms} 50000 {52000 + ms} 0"
    text = mountstats().replace("age:\t864000", "age:\t864060")
    return lambda tree: tree.write("proc/self/mountstats", text.replace(READS, reads))


BEFORE = [(60.0, counted(age=864_000))]
SILENT = "nfs: server 10.0.0.5 not responding, still trying"
RECLAIM = "NFS: __nfs4_reclaim_open_state: Lock reclaim failed!"

NFS = [
    *limit(
        "nfs.passive",
        "of 1000 messages sent again",
        lambda n: counted(calls=1000, again=n),
        {9: OK, 10: WARN},
        earlier=BEFORE,
    ),
    *limit(
        "nfs.passive",
        "calls with five sent again",
        lambda n: counted(calls=n, again=5),
        {99: OK, 100: WARN},
        earlier=BEFORE,
    ),
    *limit(
        "nfs.passive",
        "of 10 s in the client's queue, ms",
        lambda n: counted(calls=1000, queued_ms=n * 1000, ms=10**7),
        {7999: OK, 8000: WARN, 10_000: WARN, 10_001: OK},  # the last: a clock that stepped
        earlier=BEFORE,
    ),
    *limit(
        "nfs.passive",
        "mostly in the queue, ms",
        lambda n: counted(calls=1000, queued_ms=990_000, ms=n * 1000),
        {999: OK, 1000: WARN},
        earlier=BEFORE,
    ),
    *limit(
        "nfs.passive",
        "calls in the queue",
        lambda n: counted(calls=n, queued_ms=n * 9000, ms=n * 10_000),
        {99: OK, 100: WARN},
        earlier=BEFORE,
    ),
    *limit(
        "nfs.passive",
        "of 10 s of a READ in the queue, s",
        lambda n: read(200, n * 200_000, 2_000_000),
        {7: OK, 9: WARN},
        earlier=BEFORE,
    ),
    *limit(
        "nfs.passive",
        "timeouts",
        lambda n: counted(calls=10, timeouts=n),
        {0: OK, 1: WARN},
        earlier=BEFORE,
    ),
    *(
        Case(
            check="nfs.passive",
            name=f"timeouts for {lasted:g} s",
            earlier=[
                (60 + lasted, counted(age=864_000)),
                (lasted, counted(calls=3, timeouts=3, age=864_060)),
            ],
            change=counted(calls=4, timeouts=5, age=864_060 + int(lasted)),
            status=status,
        )
        for lasted, status in ((59.0, WARN), (60.0, FAIL))
    ),
    *limit(
        "nfs.passive",
        "silent for, s",
        lambda n: logged(SILENT, ago_s=n),
        {59: WARN, 60: FAIL},
        earlier=BEFORE,
    ),
    *limit(
        "nfs.passive",
        "last silent before the first look, s",
        lambda n: both(counted(), logged(SILENT, ago_s=n)),
        {3599: FAIL, 3600: FAIL, 3601: UNKNOWN},
    ),
    *limit(
        "nfs.passive",
        "silent first and last before the first look, s",
        lambda n: both(logged(SILENT, ago_s=9000), logged(SILENT, ago_s=n)),
        {3599: FAIL, 3600: UNKNOWN},
    ),
    *limit(
        "nfs.passive",
        "a soft mount gave up before, s",
        lambda n: both(counted(), logged(SILENT.replace("still trying", "timed out"), ago_s=n)),
        {3599: WARN, 3600: OK},
        earlier=BEFORE,
    ),
    *limit(
        "nfs.passive",
        "locks lost before, s",
        lambda n: both(counted(), logged(RECLAIM, ago_s=n)),
        {3599: WARN, 3600: OK},
        earlier=BEFORE,
    ),
    *limit(
        "nfs.passive",
        "silent though it works, in words",
        lambda words: both(counted(calls=1), logged(words, ago_s=90)),
        {
            "NFS: server 10.0.0.5 not responding, still trying": FAIL,
            "nlm: server 10.0.0.5 not responding, still trying": FAIL,
            "nfs: server 10.0.0.5 not responding": FAIL,
            "nfs: server 10.0.0.5 not responding, timed out": WARN,
            "nfs: server 10.0.0.5 not respondingly": OK,
        },
        earlier=BEFORE,
    ),
    Case(
        check="nfs.passive",
        name="one call says that the OK was lost",
        earlier=[(60.0, both(counted(age=864_000), logged(SILENT, ago_s=90)))],
        change=counted(calls=1),
        status=OK,
    ),
]
