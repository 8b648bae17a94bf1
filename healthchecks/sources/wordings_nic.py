"""How drivers of NICs say what is wrong with them: one table for each kind of event."""

from __future__ import annotations

from healthchecks.frame.check import Status
from healthchecks.sources.kernel_patterns import KernelLogPattern, Wording

BDF = r"([\da-f]{4,8}:[\da-f]{2}:[\da-f]{2}\.[\da-f])"
_NIC_RESTART = "drain the node and restart the NIC (mlxfwreset, or a power cycle of the host)"
_MLX5 = rf"mlx5_core {BDF}: "
_BY = r"(?:\w+:\d+:\(pid \d+\): )?"  # function, line and process: mlx5_core_err, mlx5_core_warn
_STARTED = "mlx5_core "  # the driver started it again, or got it back
_STARTED_LINE = _MLX5 + rf"{_BY}(?:firmware version: \d|health recovery succeeded)"
NIC_PATTERNS = (
    KernelLogPattern(
        name="health",
        wordings=(
            Wording(
                source="Linux 3.x to 6.12, drivers/net/ethernet/mellanox/mlx5/core/health.c",
                substring="health compromised",
                regex=_MLX5 + r".*device's health compromised",
                example="mlx5_core 0000:18:00.0: poll_health:938:(pid 0): device's health "
                "compromised "
                "- reached miss count",
            ),
            Wording(
                source="Linux 5.4, health.c poll_health: a sensor of the firmware",
                substring="Fatal error ",
                regex=_MLX5 + rf"{_BY}Fatal error \d+ detected",
                example="mlx5_core 0000:00:00.0: poll_health:694:(pid 0): Fatal error 1 detected",
            ),
            Wording(
                source="Linux 4.x to 5.19, health.c print_health_info; before 4.20 without "
                "function",
                substring="synd 0x",
                regex=_MLX5 + rf"{_BY}synd 0x(?!0:|10:)[\da-f]+: ",
                example="mlx5_core 0000:18:00.0: print_health_info:423:(pid 0): synd 0x1: firmware "
                "internal error",
            ),
            Wording(
                source="Linux 5.16, health.c print_health_info, severities 0 to 3 of syslog",
                substring="Health issue observed",
                regex=_MLX5 + rf"{_BY}Health issue observed, [\w ]+, severity\([0-3]\) ",
                example="mlx5_core 0000:18:00.0: print_health_info:431:(pid 0): Health issue "
                "observed, "
                "firmware internal error, severity(3) ERROR:",
            ),
            Wording(
                source="Linux 4.x to 6.12, health.c mlx5_health_try_recover",
                substring="health recovery f",
                regex=_MLX5 + rf"{_BY}health recovery (?:flow aborted|failed)",
                example="mlx5_core 0000:18:00.0: mlx5_health_try_recover:332:(pid 12): health "
                "recovery "
                "flow aborted, PCI reads still not working",
            ),
        ),
        status=Status.FAIL,
        what="the NIC's firmware does not answer, or has a fatal error",
        fix=_NIC_RESTART,
        until_boot=True,
        cleared_by=_STARTED,
        cleared_regex=_STARTED_LINE,
    ),
    KernelLogPattern(
        name="command",
        wordings=(
            Wording(
                source="Linux 4.x to 6.12, mlx5/core/cmd.c wait_func",
                substring="Will cause a leak of a command resource",
                regex=_MLX5 + r".*Will cause a leak of a command resource",
                example="mlx5_core 0000:18:00.0: wait_func:1177:(pid 967): MODIFY_CQ(0x403) "
                "timeout. "
                "Will cause a leak of a command resource",
            ),
        ),
        status=Status.FAIL,
        what="a command to the NIC's firmware got no answer",
        fix=_NIC_RESTART,
        until_boot=True,
        cleared_by=_STARTED,
        cleared_regex=_STARTED_LINE,
    ),
    KernelLogPattern(
        name="power",
        wordings=(
            Wording(
                # Slots that don't say what they give are warned of at each boot.
                source="Linux 4.x to 6.12, mlx5/core/events.c mlx5_pcie_event",
                substring="insufficient power on the PCIe slot",
                regex=_MLX5 + r".*Detected insufficient power on the PCIe slot",
                example="mlx5_core 0000:18:00.0: mlx5_pcie_event:301:(pid 2): Detected "
                "insufficient "
                "power on the PCIe slot (27W).",
            ),
        ),
        status=Status.WARN,
        what="the slot says that it gives too little power",
        fix="look at the slot's power in the BIOS, and at the transceivers' power class",
        until_boot=True,
        while_booting=False,
    ),
    KernelLogPattern(
        name="temperature",
        wordings=(
            Wording(
                source="Linux 4.x to 6.12, mlx5/core/events.c port_module",
                substring="High Temperature",
                regex=_MLX5 + r".*High Temperature",
                example="mlx5_core 0000:18:00.0: Port module event[error]: module 0, Cable "
                "error, High "
                "Temperature",
            ),
        ),
        status=Status.WARN,
        what="a transceiver is too hot",
        fix="look at air flow and fans, then replace the transceiver",
    ),
    KernelLogPattern(
        name="nic_temperature",
        wordings=(
            Wording(
                source="Linux 4.20 to 6.12, mlx5/core/events.c temp_warn",
                substring="High temperature on sensors",
                regex=_MLX5 + rf"{_BY}High temperature on sensors",
                example="mlx5_core 0000:18:00.0: temp_warn:243:(pid 0): High temperature on "
                "sensors "
                "with bit set 0 1",
            ),
            Wording(
                source="Linux 4.x to 6.12, mlx5/core/health.c: syndrome 0x10",
                substring="igh temp",
                regex=_MLX5 + rf"{_BY}(?:synd 0x10: |Health issue observed, )[Hh]igh temp",
                example="mlx5_core 0000:18:00.0: print_health_info:423:(pid 0): synd 0x10: High "
                "temperature",
            ),
        ),
        status=Status.WARN,
        what="the NIC is too hot",
        fix="look at air flow and fans",
    ),
    KernelLogPattern(
        name="module",
        wordings=(
            Wording(
                source="Linux 4.x to 6.12, mlx5/core/events.c port_module",
                substring="Port module event[error]",
                regex=_MLX5 + rf"{_BY}Port module event\[error\]: ",
                example="mlx5_core 0000:18:00.0: Port module event[error]: module 0, Cable "
                "error, Bus "
                "stuck (I2C or data shorted)",
            ),
        ),
        status=Status.WARN,
        what="a transceiver or cable has an error",
        fix="reseat cable and transceiver, then replace them",
    ),
    KernelLogPattern(
        name="queue",
        wordings=(
            Wording(
                source="Linux before 6.5, net/sched/sch_generic.c dev_watchdog",
                substring="NETDEV WATCHDOG: ",
                regex=r"NETDEV WATCHDOG: ([^\s:/()]{1,15}) \((?:mlx|bnxt|ice|i40e)\w*\): "
                r"transmit queue "
                r"\d+ timed out",
                example="NETDEV WATCHDOG: eth0 (mlx5_core): transmit queue 0 timed out",
            ),
            Wording(
                source="Linux 6.5, dev_watchdog by netdev_crit",
                substring="NETDEV WATCHDOG: ",
                regex=rf"(?:mlx5_core|mlx4_core|bnxt_en|ice|i40e) {BDF}(?: [^ :]+)?: NETDEV "
                rf"WATCHDOG: "
                r"(?:CPU: \d+: )?transmit queue \d+ timed out",
                example="mlx5_core 0000:18:00.0 eth0: NETDEV WATCHDOG: CPU: 3: transmit queue 0 "
                "timed "
                "out 5344 ms",
            ),
            Wording(
                source="Linux 4.x to 6.12, mlx5/core/en_main.c mlx5e_tx_timeout",
                substring="TX timeout ",
                regex=rf"mlx5_core {BDF} [^ :]+: TX timeout (?:detected|on queue)",
                example="mlx5_core 0000:18:00.0 ens4np0: TX timeout detected",
            ),
        ),
        status=Status.WARN,
        what="a queue of the NIC sent nothing for seconds",
        fix="look for the NIC's own errors in the log, at its firmware and at flow control",
    ),
    KernelLogPattern(
        name="bus",
        wordings=(
            Wording(
                source="Linux 4.x to 6.12, drivers/pci/pcie/aer.c aer_print_error",
                substring="PCIe Bus Error: severity=Uncorrect",
                regex=rf"(?:mlx5_core|bnxt_en|ice) {BDF}: (?:AER: )?PCIe Bus Error: "
                r"severity=Uncorrect(?:ed|able) ",
                example="mlx5_core 0000:18:00.0: AER: PCIe Bus Error: severity=Uncorrectable "
                "(Fatal), "
                "type=Transaction Layer, (Requester ID)",
            ),
        ),
        status=Status.WARN,
        what="an uncorrected error on the NIC's PCIe link",
        fix="reseat the NIC or its riser at the next service; look at pcie.errors",
    ),
)
