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
# Of others than mlx5, which say each in its own way that their driver has started again.
_NETDEV = r"(?: [^ :]+| \(unnamed net_device\) \(uninitialized\))?: "
NIC_PATTERNS = (
    KernelLogPattern(
        name="firmware",
        wordings=(
            Wording(
                source="Linux 5.x to 6.13, intel i40e_main.c, ice_main.c, ixgbe_main.c",
                substring="Firmware recovery mode detected",
                regex=rf"(?:ice|i40e|ixgbe) {BDF}{_NETDEV}Firmware recovery mode detected",
                example="ice 0000:4b:00.0: Firmware recovery mode detected. Limiting "
                "functionality.",
            ),
            Wording(
                source="Linux 5.x to 6.12, intel/ice/ice_main.c ice_rebuild",
                substring="Rebuild failed, unload and reload driver",
                regex=rf"ice {BDF}: Rebuild failed, unload and reload driver",
                example="ice 0000:4b:00.0: Rebuild failed, unload and reload driver",
            ),
            Wording(
                source="Linux 3.x to 6.12, mellanox/mlx4/catas.c dump_err_buf",
                substring="Internal error detected:",
                regex=rf"mlx4_core {BDF}: Internal error detected:",
                example="mlx4_core 0000:21:00.0: Internal error detected:",
            ),
        ),
        status=Status.FAIL,
        what="the NIC's firmware does not answer, or has a fatal error",
        fix="drain the node, reload the NIC's driver or power cycle the host; then flash its "
        "firmware",
        until_boot=True,
        cleared_by="DDP package was successfully loaded",
        cleared_regex=rf"ice {BDF}: The DDP package was successfully loaded",
    ),
    KernelLogPattern(
        name="no_answer",
        wordings=(
            Wording(
                source="Linux 3.x to 6.12, mellanox/mlx4/cmd.c",
                substring="timed out (go bit not cleared)",
                regex=rf"mlx4_core {BDF}: command 0x[\da-f]+ timed out \(go bit not cleared\)",
                example="mlx4_core 0000:21:00.0: command 0x1f timed out (go bit not cleared)",
            ),
            Wording(
                source="Linux 4.x to 6.12, broadcom/bnxt/bnxt_hwrm.c __hwrm_send",
                substring="Error (timeout: ",
                regex=rf"bnxt_en {BDF}{_NETDEV}Error \(timeout: \d+\) msg \{{0x[\da-f]+ 0x",
                example="bnxt_en 0000:3d:00.0 enp61s0f0np0: Error (timeout: 500015) msg {0x16 "
                "0x1bb} len:0",
            ),
            Wording(
                source="Linux 5.2 to 6.12, drivers/infiniband/hw/efa/efa_com.c",
                substring="The device ",
                regex=r"infiniband (\S+): The device (?:didn't send any completion for admin cmd "
                r"|sent a completion but the driver didn't receive)",
                example="infiniband rdmap80s0: The device didn't send any completion for admin "
                "cmd CREATE_QP(1) status 0",
            ),
        ),
        status=Status.FAIL,
        what="a command to the NIC's firmware got no answer",
        fix="drain the node, reload the NIC's driver or power cycle the host",
        until_boot=True,
        cleared_by="Ethernet found at mem",
        cleared_regex=rf"bnxt_en {BDF} [^ :]+: Broadcom [\w /.-]+ Ethernet found at mem ",
    ),
    KernelLogPattern(
        name="reset",
        wordings=(
            Wording(
                source="Linux 5.4 to 6.12, broadcom/bnxt/bnxt.c; since 5.13 with its figures",
                substring=" reset event",
                regex=rf"bnxt_en {BDF}{_NETDEV}Firmware (?:[Ff]atal|[Nn]on-fatal) reset event",
                example="bnxt_en 0000:3d:00.0 enp61s0f0np0: Firmware fatal reset event received",
            ),
        ),
        status=Status.WARN,
        what="the NIC's firmware was reset after an error of its own",
        fix="look at its firmware's version and errors (nic.fw), and at its link (ib.port)",
    ),
    KernelLogPattern(
        name="misbehaved",
        wordings=(
            Wording(
                source="Linux 5.x to 6.12, intel/ice/ice_main.c ice_handle_mdd_event, i40e",
                substring="alicious Driver Detection event",
                regex=rf"(?:ice|i40e) {BDF}: Malicious Driver Detection event ",
                example="ice 0000:4b:00.0: Malicious Driver Detection event 6 on TX queue 3 PF# 0",
            ),
        ),
        status=Status.WARN,
        what="the NIC says that its driver misbehaved, and stopped a queue",
        fix="update driver and firmware of the NIC together",
    ),
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
            Wording(
                source="Linux 4.x to 6.12, health.c mlx5_handle_bad_state",
                substring="because of a bad device state",
                regex=_MLX5 + rf"{_BY}starting teardown because of a bad device state",
                example="mlx5_core 0000:18:00.0: mlx5_handle_bad_state:250:(pid 0): starting "
                "teardown because of a bad device state: NIC IFC still 7 after 1000ms",
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
                regex=r"NETDEV WATCHDOG: ([^\s:/()]{1,15}) \((?:mlx|bnxt|ice|i40e|ena|gv)\w*\): "
                r"transmit queue "
                r"\d+ timed out",
                example="NETDEV WATCHDOG: eth0 (mlx5_core): transmit queue 0 timed out",
            ),
            Wording(
                source="Linux 6.5, dev_watchdog by netdev_crit",
                substring="NETDEV WATCHDOG: ",
                regex=rf"(?:mlx[45]_core|bnxt_en|ice|i40e|ena|gve|gvnic) {BDF}(?: [^ :]+)?: "
                r"NETDEV WATCHDOG: "
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
            Wording(
                source="Linux 5.x to 6.12, intel/ice/ice_main.c ice_tx_timeout",
                substring=": tx_timeout: VSI_num: ",
                regex=rf"ice {BDF} [^ :]+: tx_timeout: VSI_num: \d",
                example="ice 0000:4b:00.0 ens1f0: tx_timeout: VSI_num: 7, Q 3, NTC: 0x1",
            ),
        ),
        status=Status.WARN,
        what="a queue of the NIC sent nothing for seconds",
        fix="look for the NIC's own errors in the log, at its firmware and at flow control",
    ),
    KernelLogPattern(
        name="queue_of_ena",
        wordings=(
            Wording(
                source="Linux 4.9 to 6.12, amazon/ena/ena_netdev.c check_for_missing_keep_alive",
                substring="Keep alive watchdog timeout",
                regex=rf"ena {BDF} [^ :]+: Keep alive watchdog timeout\.",
                example="ena 0000:00:05.0 ens5: Keep alive watchdog timeout.",
            ),
        ),
        status=Status.WARN,
        what="a queue of the NIC sent nothing for seconds",
        fix="look whether the host had trouble (the cloud's status page)",
        cleared_by="Device reset completed successfully",
        cleared_regex=rf"ena {BDF}(?: [^ :]+)?: Device reset completed successfully",
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
