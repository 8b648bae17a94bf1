"""How clients of shared file systems say that a server does not answer: one table for each kind of
event. NFS has its own (checks/nfs_stats.py). The clients of WEKA and IBM Storage Scale keep logs of
their own, which nothing here reads."""

from __future__ import annotations

from healthchecks.frame.check import Status
from healthchecks.sources.kernel_patterns import KernelLogPattern, Wording

_LUSTRE = r"Lustre: ([\w.-]{1,64}?)-(?:osc|mdc|lwp)-[\da-f]+: "
_LUSTRE_ERROR = r"LustreError: (?:\d+-\d+: )?"
_CEPH = r"ceph: (?:\[[\da-f-]{36} \d+\]: +)?"
_WHERE = r"\d+:\d+:\(\w+\.c:\d+:\w+\(\)\) "  # process, file, line and function
_SERVER = "look at that server and at the way to it; nodes that share it say the same"
STORAGE_PATTERNS = (
    KernelLogPattern(
        name="lustre_lost",
        wordings=(
            Wording(
                source="Lustre 2.x, ptlrpc/import.c ptlrpc_set_import_discon",
                substring="was lost; in progress operations",
                regex=_LUSTRE + r"Connection to \S+ \(at \S+\) was lost; in progress operations",
                example="Lustre: fs1-OST0001-osc-ffff9d6153c91000: Connection to fs1-OST0001 (at "
                "192.168.14.178@tcp) was lost; in progress operations using this service will "
                "wait for recovery to complete",
            ),
        ),
        status=Status.WARN,
        what="the server of a file system did not answer",
        fix=_SERVER,
        shared="lustre target",
        cleared_by="Connection restored to ",
        cleared_regex=_LUSTRE + r"Connection restored to ",
    ),
    KernelLogPattern(
        name="lustre_manager_lost",
        wordings=(
            Wording(
                source="Lustre 2.x, ptlrpc/import.c ptlrpc_set_import_discon, of the MGS",
                substring="was lost; in progress operations",
                regex=_LUSTRE_ERROR + r"(MGC[\w.@:]+): Connection to MGS \(at \S+\) was lost; ",
                example="LustreError: 166-1: MGC10.130.93.11@o2ib: Connection to MGS (at "
                "10.130.93.10@o2ib) was lost; in progress operations using this service will fail",
            ),
        ),
        status=Status.WARN,
        what="the server of a file system did not answer",
        fix=_SERVER,
        shared="lustre manager",
        cleared_by="Connection restored to ",
        cleared_regex=r"Lustre: (MGC[\w.@:]+): Connection restored to ",
    ),
    KernelLogPattern(
        name="lustre_evicted",
        wordings=(
            Wording(
                source="Lustre 2.x, ptlrpc/import.c ptlrpc_import_recovery_state_machine",
                substring="This client was evicted by ",
                regex=_LUSTRE_ERROR
                + r"([\w.-]{1,64}?)-(?:osc|mdc|lwp)-[\da-f]+: This client was evicted by ",
                example="LustreError: 167-0: fs1-OST0003-osc-ffff9d6153c91000: This client was "
                "evicted by fs1-OST0003; in progress operations using this service will fail.",
            ),
        ),
        status=Status.WARN,
        what="threw this node out: what was being written is lost, and locks are",
        fix="restart what wrote there; where one node alone is thrown out, look at its network",
    ),
    KernelLogPattern(
        name="lustre_bug",
        wordings=(
            Wording(
                source="Lustre 2.x, libcfs debug.c lbug_with_loc, LASSERT",
                substring="LustreError: ",
                regex=rf"LustreError: {_WHERE}(?:LBUG|ASSERTION\()",
                example="LustreError: 1234:0:(osc_cache.c:2342:osc_extent_finish()) LBUG",
            ),
        ),
        status=Status.FAIL,
        what="the file system's client failed for good: a thread of it hangs until a boot",
        fix="drain the node and reboot it; keep the lines around it for Lustre's vendor",
        until_boot=True,
    ),
    KernelLogPattern(
        name="lnet_timeout",
        wordings=(
            Wording(
                source="Lustre 2.x, lnet/klnds/o2iblnd/o2iblnd_cb.c kiblnd_check_conns",
                substring="Timed out tx for ",
                regex=rf"LNet(?:Error)?: {_WHERE}Timed out (?:tx|RDMA) (?:for|with) ([\w.:]+@\w+)",
                example="LNet: 2431:0:(o2iblnd_cb.c:3174:kiblnd_check_conns()) Timed out tx for "
                "172.31.126.87@o2ib: 403055 seconds",
            ),
        ),
        status=Status.WARN,
        what="the server of a file system did not answer",
        fix=_SERVER,
        shared="lustre server",
    ),
    KernelLogPattern(
        name="ceph_hung",
        wordings=(
            Wording(
                source="Linux 2.6.34 to 6.12, fs/ceph/mds_client.c check_session_state",
                substring=" hung",
                regex=_CEPH + r"(mds\d+) hung\Z",
                example="ceph: [4a1f7f2c-9a5f-11ee-9c4e-000000000000 24187]: mds1 hung",
            ),
        ),
        status=Status.WARN,
        what="the server of a file system did not answer",
        fix=_SERVER,
        shared="ceph server",
        cleared_by="ceph: ",
        cleared_regex=_CEPH + r"(mds\d+) (?:came back|recovery completed|reconnect success)",
    ),
    KernelLogPattern(
        name="ceph_monitors",
        wordings=(
            Wording(
                source="Linux 2.6.34 to 6.12, net/ceph/mon_client.c reopen_session",
                substring="session lost, hunting for new mon",
                regex=r"libceph: mon()\d+ (?:\(\d\))?[\da-f.:\[\]]+ session lost, hunting for",
                example="libceph: mon2 (1)10.72.36.245:40083 session lost, hunting for new mon",
            ),
        ),
        status=Status.WARN,
        what="the server of a file system did not answer: no monitor since",
        fix=_SERVER,
        shared="ceph monitors",
        cleared_by="session established",
        cleared_regex=r"libceph: mon()\d+ (?:\(\d\))?[\da-f.:\[\]]+ session established",
    ),
    KernelLogPattern(
        name="ceph_denied",
        wordings=(
            Wording(
                source="Linux 5.x to 6.12, fs/ceph/mds_client.c handle_session",
                substring="ceph: ",
                regex=_CEPH + r"(mds\d+) (?:reconnect denied|rejected session|session blocklisted)",
                example="ceph: mds0 reconnect denied",
            ),
        ),
        status=Status.WARN,
        what="threw this node out: what was being written is lost, and locks are",
        fix="unmount and mount the file system again, then restart what used it",
    ),
    KernelLogPattern(
        name="cifs_silent",
        wordings=(
            Wording(
                source="Linux 5.4, fs/smb/client/connect.c server_unresponsive",
                substring="has not responded in ",
                regex=r"CIFS: VFS: \\\\([\w.:-]+) has not responded in \d+ seconds",
                example="CIFS: VFS: \\\\10.0.0.5 has not responded in 180 seconds. Reconnecting...",
            ),
            Wording(
                source="Linux 3.x to 5.3, fs/cifs/connect.c server_unresponsive",
                substring="has not responded in ",
                regex=r"CIFS VFS: Server ([\w.:-]+) has not responded in \d+ seconds",
                example="CIFS VFS: Server filer has not responded in 120 seconds. Reconnecting...",
            ),
        ),
        status=Status.WARN,
        what="the server of a file system did not answer",
        fix=_SERVER,
        shared="cifs server",
    ),
    KernelLogPattern(
        name="beegfs_silent",
        wordings=(
            Wording(
                source="BeeGFS 7 and 8, client_module/source/net/message/../MessagingTk.c",
                substring="Retrying communication with ",
                regex=r"beegfs: .{0,15}\(\d+\): (?:Messaging \(\w+\): )?Retrying communication "
                r"with (?:metadata )?node: (\S.{0,60})\Z",
                example="beegfs: python3(4242): Messaging (RPC): Retrying communication with "
                "node: beegfs-storage node01 [ID: 2]",
            ),
        ),
        status=Status.WARN,
        what="the server of a file system did not answer",
        fix=_SERVER,
        shared="beegfs server",
    ),
    KernelLogPattern(
        name="afs_silent",
        wordings=(
            Wording(
                source="OpenAFS 1.x, src/afs/afs_server.c print_internet_address",
                substring="afs: Lost contact with ",
                regex=r"afs: Lost contact with (?:file|volume location) server ([\w.:]+) in cell ",
                example="afs: Lost contact with file server 10.0.0.7 in cell example.org (code "
                "-1) (all multi-homed ip addresses down for the server)",
            ),
        ),
        status=Status.WARN,
        what="the server of a file system did not answer",
        fix=_SERVER,
        shared="afs server",
        cleared_by="is back up",
        cleared_regex=r"afs: (?:file|volume location) server ([\w.:]+) in cell \S+ is back up",
    ),
)
