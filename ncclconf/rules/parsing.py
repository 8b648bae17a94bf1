"""How names and values are written."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ncclconf.catalogue import NOBODY, closest, lookup, written
from ncclconf.lint import Hit, Severity, Subject, c_number, example, rule

OLD = {
    "NCCL_RINGS": "NCCL_GRAPH_FILE",
    "NCCL_MAX_NRINGS": "NCCL_MAX_CTAS",
    "NCCL_MIN_NRINGS": "NCCL_MIN_CTAS",
    "NCCL_LL_THRESHOLD": "NCCL_PROTO",
    "NCCL_TREE_THRESHOLD": "NCCL_ALGO",
    "NCCL_SINGLE_RING_THRESHOLD": "NCCL_MAX_CTAS",
    "NCCL_IB_GDR_LEVEL": "NCCL_NET_GDR_LEVEL",
    "NCCL_IB_CUDA_SUPPORT": "NCCL_NET_GDR_LEVEL",
    "NCCL_MNNVL": "NCCL_MNNVL_ENABLE",
    "NCCL_CHECK_POINTERS": "NCCL_CHECK_MODE",
    "NCCL_GIN_NCONTEXTS": "NCCL_GIN_NCONNECTIONS",
}
MEANT = {
    "NCCL_DEBUG_SYS": "NCCL_DEBUG_SUBSYS",
    "NCCL_NCHANNELS": "NCCL_MIN_CTAS and NCCL_MAX_CTAS",
    "NCCL_EXCLUDE_IB_HCA": "NCCL_IB_HCA=^=DEVICE",
    "NCCL_IMPLICIT_LAUNCH_ORDER": "NCCL_LAUNCH_ORDER_IMPLICIT",
    "NCCL_TIMEOUT": "the timeout of the process group (torch: init_process_group)",
}
LEVELS = ("LOC", "NVL", "NVB", "C2C", "PIX", "PXB", "P2C", "PXN", "PHB", "SYS")


@rule(
    "not-a-number",
    Severity.ERROR,
    why="NCCL takes the digits at the beginning and nothing else, without a word: true and auto "
    "are 0, 4M is 4, 010 is 8",
    fix="write a plain whole number",
    source="NVIDIA/nccl src/misc/param.cc: strtoll(value, 0, 0)",
    wrong=[
        example(NCCL_P2P_DISABLE="true"),
        example(NCCL_BUFFSIZE="4M"),
        example(NCCL_NVLS_ENABLE="auto"),
        example(NCCL_MIN_CTAS=""),
        example(NCCL_IB_QPS_PER_CONNECTION="1.5"),
        example(NCCL_IB_TC="0x6g"),
        example(NCCL_IB_TIMEOUT="010"),
    ],
    right=[
        example(NCCL_P2P_DISABLE="1"),
        example(NCCL_BUFFSIZE="4194304"),
        example(NCCL_IB_TC="0x60"),
        example(NCCL_CROSS_NIC="0"),
        example(NCCL_NET_OVERHEAD="-2"),
        example(OFI_NCCL_DISABLE_DMABUF="true"),
    ],
)
def not_a_number(s: Subject) -> Iterator[Hit]:
    for setting, variable in s.variables():
        if not variable.is_number or variable.name == "NCCL_CTA_POLICY":
            continue
        text = setting.text
        number = c_number(text)
        if number is None:
            digits = re.match(r"\s*[+-]?(0[xX][0-9a-fA-F]+|[0-9]*)", text)
            taken = c_number(digits[0]) if digits and digits[0].strip("+- ") else 0
            yield Hit(names=(setting.name,), seen=f"{setting.name}={text!r} is read as {taken}")
        elif re.fullmatch(r"\s*[+-]?0[0-7]+", text):
            yield Hit(names=(setting.name,), seen=f"{setting.name}={text} is octal: {number}")


@rule(
    "out-of-range",
    Severity.ERROR,
    why="NCCL cuts such a value, or does something else than it says",
    fix="see `superv nccl explain`",
    source="the ranges of the catalogue: NCCL's user guide and sources",
    wrong=[
        example(NCCL_IB_SL="16"),
        example(NCCL_MAX_CTAS="128"),
        example(NCCL_SOCKET_NTHREADS="64"),
        example(NCCL_CROSS_NIC="3"),
        example(NCCL_IB_RETRY_CNT="8"),
        example(NCCL_DMABUF_ENABLE="2"),
    ],
    right=[
        example(NCCL_IB_SL="15"),
        example(NCCL_MAX_CTAS="64"),
        example(NCCL_NVLS_ENABLE="2"),
        example(NCCL_NET_GDR_READ="-2"),
        example(NCCL_IB_TIMEOUT="0"),
    ],
)
def out_of_range(s: Subject) -> Iterator[Hit]:
    for setting, variable in s.variables():
        number = c_number(setting.text) if variable.owner == "nccl" else None
        if number is None or variable.name == "NCCL_IB_TIMEOUT" or not variable.evidence:
            continue
        if not variable.accepts(number):
            seen = f"{setting.name}={setting.text}: valid is {variable.valid}"
            yield Hit(names=(setting.name,), seen=seen)


@rule(
    "unknown-name",
    Severity.WARNING,
    why="NCCL ignores names that it does not know, without a word",
    fix="correct or remove it; `superv nccl vars` lists what there is",
    source="NVIDIA/nccl src/misc/param.cc; seen in NVIDIA/nccl#1199",
    wrong=[
        example(NCCL_DEBUG_SYS="ALL"),
        example(NCCL_SOCKET_IFNAMES="eth0"),
        example(NCCL_TIMEOUT="1800"),
        example(TORCH_NCCL_ASYNC_ERROR_HANDLNG="1"),
        example(NCCL_IB_HCAS="mlx5"),
    ],
    right=[
        example(NCCL_DEBUG_SUBSYS="INIT"),
        example(NCCL_VERSION="2.28.3-1"),
        example(NCCL_UCX_TLS="rc"),
        example(NCCL_FASTRAK_CTRL_DEV="eth0"),
        example(OFI_NCCL_SOMETHING_NEW="1"),
        example(CUDA_HOME="/usr/local/cuda"),
        example(UCX_SOMETHING="1"),
    ],
)
def unknown_name(s: Subject) -> Iterator[Hit]:
    for name in s.set_names():
        if not name.startswith(("NCCL_", "TORCH_NCCL_", "TORCH_FR_")):
            continue
        variable = lookup(name)
        if name in MEANT:
            yield Hit(names=(name,), seen=f"nothing reads {name}", fix=f"meant is {MEANT[name]}")
        elif variable is None:
            meant = closest(name)
            more = f"; did you mean {meant}?" if meant else ""
            yield Hit(names=(name,), seen=f"no {name} is known{more}")
        elif variable.type == NOBODY:
            yield Hit(names=(name,), seen=f"{name}: {variable.meaning}")


@rule(
    "other-release",
    Severity.WARNING,
    why="this NCCL does not read it: it has no effect",
    fix="remove it, or use another release",
    source="the names in the libraries that NVIDIA publishes, 2.16.5 to 2.32.3",
    wrong=[
        example({"nccl": (2, 28, 3)}, NCCL_IB_RESILIENCY_PORT_FAILOVER="1"),
        example({"nccl": (2, 28, 3)}, NCCL_TREE_THRESHOLD="0"),
        example({"nccl": (2, 18, 1)}, NCCL_RAS_ENABLE="1"),
    ],
    right=[
        example({"nccl": (2, 30, 3)}, NCCL_IB_RESILIENCY_PORT_FAILOVER="1"),
        example(NCCL_IB_RESILIENCY_PORT_FAILOVER="1"),
        example({"nccl": (2, 28, 3)}, NCCL_RAS_ENABLE="1"),
    ],
)
def other_release(s: Subject) -> Iterator[Hit]:
    release = s.facts.nccl
    if release is None:
        return
    for setting, variable in s.variables():
        if variable.owner == "nccl" and variable.type != NOBODY and not variable.read_by(release):
            when = (
                f"came with {written(variable.since)}"
                if variable.since and release < variable.since
                else f"went with {written(variable.until or ())}"
            )
            fix = f"use {OLD[setting.name]}" if setting.name in OLD else ""
            seen = f"{setting.name} {when}, this is {written(release)}"
            yield Hit(names=(setting.name,), seen=seen, fix=fix)


@rule(
    "unknown-level",
    Severity.ERROR,
    why="a word that is none of NCCL's topology is passed over, and so is one in lower case",
    fix=f"write one of {' '.join(LEVELS)}",
    source="NVIDIA/nccl src/graph/paths.cc",
    wrong=[
        example(NCCL_P2P_LEVEL="nvl"),
        example(NCCL_NET_GDR_LEVEL="NODE"),
        example(NCCL_NET_GDR_LEVEL="PBX"),
    ],
    right=[
        example(NCCL_P2P_LEVEL="NVL"),
        example(NCCL_NET_GDR_LEVEL="SYS"),
        example(NCCL_P2P_LEVEL="3"),
    ],
)
def unknown_level(s: Subject) -> Iterator[Hit]:
    for name in ("NCCL_P2P_LEVEL", "NCCL_NET_GDR_LEVEL", "NCCL_NET_MERGE_LEVEL"):
        text = s.text(name)
        words = (*LEVELS, "PORT") if name == "NCCL_NET_MERGE_LEVEL" else LEVELS
        if text is None or text in words:
            continue
        if re.fullmatch(r"[0-5]", text) and "MERGE" not in name:
            continue
        upper = f", did you mean {text.upper()}?" if text.upper() in words else ""
        yield Hit(names=(name,), seen=f"{name}={text} is no level{upper}")


@rule(
    "old-level",
    Severity.WARNING,
    why="numbers are the old form of these levels; NCCL warns of them",
    fix=f"write one of {' '.join(LEVELS)}",
    source="NVIDIA/nccl src/graph/paths.cc",
    wrong=[example(NCCL_P2P_LEVEL="2")],
    right=[example(NCCL_P2P_LEVEL="PHB")],
)
def old_level(s: Subject) -> Iterator[Hit]:
    for name in ("NCCL_P2P_LEVEL", "NCCL_NET_GDR_LEVEL"):
        if re.fullmatch(r"[0-5]", s.text(name) or ""):
            yield Hit(names=(name,), seen=f"{name}={s.text(name)}")


@rule(
    "conf-file-writing",
    Severity.ERROR,
    why="NCCL takes a file's lines as they are: blanks and quotes become part of name and value, ~ "
    "stays ~, and # makes a comment in the first column only, since 2.26.2",
    fix="write NAME=VALUE, without blanks and quotes",
    source="NVIDIA/nccl src/misc/param.cc; NVIDIA/nccl#874",
    wrong=[
        example(raw="NCCL_DEBUG = INFO\n"),
        example(raw='NCCL_SOCKET_IFNAME="eth0"\n'),
        example(raw="export NCCL_DEBUG=INFO\n"),
        example(raw="NCCL_DEBUG=INFO # for now\n"),
        example(raw="NCCL_TOPO_FILE=~/topo.xml\n"),
        example(raw="NCCL_DEBUG\n"),
        example(raw="NCCL_DEBUG=INFO\r\n"),
    ],
    right=[
        example(raw="# all nodes\nNCCL_DEBUG=WARN\n\nNCCL_SOCKET_IFNAME==eth0\n"),
        example(raw="NCCL_THREAD_THRESHOLDS=8 16 32 64 64 64\n"),
    ],
)
def conf_file_writing(s: Subject) -> Iterator[Hit]:
    for line in s.env.raw:
        text = f"{line.name}={line.text}" if line.name else line.text
        problem = ""
        if not line.name:
            problem = "has no ="
        elif not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", line.name):
            problem = f"its name is {line.name!r}"
        elif line.text.endswith("\r"):
            problem = "ends with a carriage return, which becomes part of the value"
        elif line.text[:1] in ('"', "'"):
            problem = "its quotes become part of the value"
        elif " #" in line.text:
            problem = "the comment becomes part of the value"
        elif line.text.startswith("~"):
            problem = "~ is not expanded"
        elif line.text != line.text.strip():
            problem = "blanks become part of the value"
        if problem:
            yield Hit(names=(), seen=f"{line.where}: {text.strip()[:60]!r} {problem}")


@rule(
    "conf-file-comment",
    Severity.WARNING,
    why="before 2.26.2 a comment of NCCL's files is a setting with a strange name",
    fix="remove comments, or use 2.26.2 or later",
    source="NVIDIA/nccl src/misc/param.cc",
    wrong=[example({"nccl": (2, 21, 5)}, raw="#NCCL_DEBUG=INFO\nNCCL_DEBUG=WARN\n")],
    right=[example({"nccl": (2, 28, 3)}, raw="#NCCL_DEBUG=INFO\nNCCL_DEBUG=WARN\n")],
)
def conf_file_comment(s: Subject) -> Iterator[Hit]:
    if s.before((2, 26, 2)):
        for line in s.env.comments:
            yield Hit(names=(), seen=f"{line.where}: {line.text[:60]!r}")


@rule(
    "conf-file-overridden",
    Severity.ADVICE,
    why="environment before NCCL_CONF_FILE (or ~/.nccl.conf) before /etc/nccl.conf: what comes "
    "later has no effect",
    fix="remove the one that is not meant",
    source="NCCL user guide, Environment Variables",
    wrong=[example(raw="NCCL_DEBUG=WARN\n", NCCL_DEBUG="INFO")],
    right=[example(raw="NCCL_DEBUG=INFO\n", NCCL_DEBUG="INFO"), example(raw="NCCL_DEBUG=INFO\n")],
)
def conf_file_overridden(s: Subject) -> Iterator[Hit]:
    for setting in s.env.hidden:
        counts = s.env.settings[setting.name]
        if counts.text != setting.text:
            seen = f"{setting.where} says {setting.name}={setting.text}, {counts.where} goes before"
            yield Hit(names=(setting.name,), seen=seen)


@rule(
    "cta-policy-words",
    Severity.ERROR,
    why="before 2.29 the policy is a number, and a word is read as 0",
    fix="write 0, 1 or 2, or use 2.29",
    source="NVIDIA/nccl src/init.cc; release notes of 2.29",
    wrong=[example({"nccl": (2, 28, 3)}, NCCL_CTA_POLICY="EFFICIENCY")],
    right=[
        example({"nccl": (2, 28, 3)}, NCCL_CTA_POLICY="1"),
        example({"nccl": (2, 29, 2)}, NCCL_CTA_POLICY="EFFICIENCY|ZERO"),
        example(NCCL_CTA_POLICY="ZERO"),
    ],
)
def cta_policy_words(s: Subject) -> Iterator[Hit]:
    text = s.text("NCCL_CTA_POLICY")
    if text is not None and s.before((2, 29)) and c_number(text) is None:
        yield Hit(names=("NCCL_CTA_POLICY",), seen=f"NCCL_CTA_POLICY={text} is read as 0")
