"""How amdgpu says that a device is in trouble: one table for each kind of event.

What a program can bring about alone (a page fault of its own) is in none.
"""

from __future__ import annotations

from healthchecks.frame.check import Status
from healthchecks.sources.kernel_patterns import KernelLogPattern, Wording

_BDF = r"([\da-f]{4}:[\da-f]{2}:[\da-f]{2}\.[0-7])"
_DEV = rf"amdgpu {_BDF}: (?:amdgpu: )?"  # dev_info and its kind; the second word until 6.17
_KFD = r"(?:kfd kfd: )?amdgpu: "  # pr_err of amdkfd
_EVENT = r"(?:\{\d+\} ?)?"  # number of a RAS event, since 6.11
_AT = "amdgpu 0000:0c:00.0: amdgpu: "
_REBOOT = (
    "drain the node and reboot it (or reload amdgpu); where it comes again, take the device out"
)
_RMA = "take the node out and ask AMD for the device's replacement (RMA)"
_LOADED = rf"\[drm\] Initialized amdgpu [\d.]+ (?:\d+ )?for {_BDF}"
_RECOVERED = (
    rf"(?:\[drm\] Initialized amdgpu [\d.]+ (?:\d+ )?for |amdgpu ){_BDF}"
    r"(?:$| on minor \d+|: (?:amdgpu: )?GPU reset\(\d+\) succeeded!)"
)

AMD_PATTERNS = (
    KernelLogPattern(
        name="uncorrectable",
        wordings=(
            Wording(
                source="Linux 5.4 to 6.18, amdgpu_ras.c: socket and die since 6.6, the event's "
                "number since 6.11, `new` and `in total` where a device counts by die",
                substring="uncorrectable hardware errors detected in ",
                regex=rf"{_DEV}{_EVENT}(?:socket: \d+,? die: \d+,? )?[1-9]\d* (?:new )?"
                r"uncorrectable hardware errors detected in (?:total in )?\w+ block",
                example=f"{_AT}2 uncorrectable hardware errors detected in umc block",
            ),
            Wording(
                source="Linux 5.5 to 6.18, amdgpu_ras.c amdgpu_ras_global_ras_isr; with a capital "
                "in the RAS manager of 6.18",
                substring="ncorrectable hardware error",
                regex=rf"{_DEV}{_EVENT}[Uu]ncorrectable hardware error ?"
                r"\(ERREVENT_ATHUB_INTERRUPT\) detected!",
                example=f"{_AT}uncorrectable hardware error(ERREVENT_ATHUB_INTERRUPT) detected!",
            ),
            Wording(
                source="Linux before 5.5, amdgpu_ras.c",
                substring="RAS event of type ERREVENT_ATHUB_INTERRUPT",
                regex=r"\[drm\] RAS event of type ERREVENT_ATHUB_INTERRUPT detected!",
                example="[drm] RAS event of type ERREVENT_ATHUB_INTERRUPT detected!",
            ),
        ),
        status=Status.FAIL,
        what="uncorrectable errors of the hardware",
        fix=_REBOOT,
        until_boot=True,
        cleared_by="Initialized amdgpu",
        cleared_regex=_LOADED,
    ),
    KernelLogPattern(
        name="poison",
        wordings=(
            Wording(
                source="Linux 5.17 to 6.18, amdkfd kfd_int_process_v9.c and later ones",
                substring="RAS poison consumption, fall back to gpu reset flow",
                regex=rf"{_DEV}{_EVENT}RAS poison consumption, fall back to gpu reset flow: "
                r"client id \d+",
                example=f"{_AT}RAS poison consumption, fall back to gpu reset flow: client id 18",
            ),
            Wording(
                source="Linux 5.19 to 6.18, amdgpu_ras.c",
                substring=" RAS poison consumption is issued!",
                regex=rf"{_DEV}{_EVENT}GPU reset for \w+ RAS poison consumption is issued!",
                example=f"{_AT}GPU reset for gfx RAS poison consumption is issued!",
            ),
        ),
        status=Status.FAIL,
        what="lost data was used, and the device has to be reset for it",
        fix=_REBOOT,
        until_boot=True,
        cleared_by="GPU reset(",
        cleared_regex=_RECOVERED,
    ),
    KernelLogPattern(
        name="worn",
        wordings=(
            Wording(
                source="Linux 5.11 to 6.18, amdgpu_ras_eeprom.c: bad pages beyond the threshold; "
                "until 6.1 with `GPU will not be initialized`",
                substring="exceed threshold:",
                regex=rf"{_DEV}RAS records:\d+ exceed threshold:\d+",
                example=f"{_AT}RAS records:257 exceed threshold:256",
            ),
        ),
        status=Status.FAIL,
        what="more bad pages of memory than AMD allows",
        fix=_RMA,
        until_boot=True,
    ),
    KernelLogPattern(
        name="init",
        wordings=(
            Wording(
                source="Linux 4.16 to 6.18, amdgpu_kms.c",
                substring="Fatal error during GPU init",
                regex=rf"{_DEV}Fatal error during GPU init",
                example=f"{_AT}Fatal error during GPU init",
            ),
            Wording(
                source="Linux until 6.8, drivers/base/dd.c",
                substring="amdgpu: probe of ",
                regex=rf"amdgpu: probe of {_BDF} failed with error -\d+",
                example="amdgpu: probe of 0000:0c:00.0 failed with error -62",
            ),
            Wording(
                source="Linux since 6.9, drivers/base/dd.c",
                substring="probe with driver amdgpu failed",
                regex=rf"amdgpu {_BDF}: probe with driver amdgpu failed with error -\d+",
                example="amdgpu 0000:0c:00.0: probe with driver amdgpu failed with error -62",
            ),
        ),
        status=Status.FAIL,
        what="the driver could not start the device",
        fix="read the lines above it (dmesg | grep amdgpu): firmware, PSP or IOMMU; then reboot or "
        "power-cycle the node",
        until_boot=True,
        cleared_by="Initialized amdgpu",
        cleared_regex=_LOADED,
    ),
    KernelLogPattern(
        name="lost",
        wordings=(
            Wording(
                source="Linux 6.9 to 6.18, amdgpu_device.c (a look before a reset)",
                substring="device lost from bus!",
                regex=rf"{_DEV}device lost from bus!",
                example=f"{_AT}device lost from bus!",
            ),
            Wording(
                source="Linux 6.1 to 6.18, pm/swsmu/smu_cmn.c: all ones are read from a device "
                "that is gone",
                substring="SMU: response:0xFFFFFFFF",
                regex=rf"{_DEV}SMU: response:0xFFFFFFFF for (?:index|message):",
                example=f"{_AT}SMU: response:0xFFFFFFFF for index:18 param:0x00000005 message:",
            ),
        ),
        status=Status.FAIL,
        what="it does not answer on the bus any more",
        fix="reboot the node; in a virtual machine page the host; reseat the device if it stays",
        until_boot=True,
        cleared_by="Initialized amdgpu",
        cleared_regex=_LOADED,
    ),
    KernelLogPattern(
        name="reset_failed",
        wordings=(
            Wording(
                source="Linux 4.16 to 6.18, amdgpu_device.c; with its error since 6.15",
                substring=") failed",
                regex=rf"{_DEV}GPU reset\(\d+\) failed",
                example=f"{_AT}GPU reset(3) failed",
            ),
            Wording(
                source="Linux 4.20 to 6.18, amdgpu_device.c",
                substring="GPU reset end with ret = -",
                regex=rf"{_DEV}GPU reset end with ret = -(?!11\b)\d+",
                example=f"{_AT}GPU reset end with ret = -62",
            ),
            Wording(
                source="Linux 5.15 to 6.18, amdgpu_job.c; until 6.9 through DRM_ERROR",
                substring="GPU Recovery Failed: -",
                regex=rf"(?:{_DEV}|\[drm:amdgpu_job_timedout \[amdgpu\]\] \*ERROR\* )"
                r"GPU Recovery Failed: -\d+",
                example=f"{_AT}GPU Recovery Failed: -19",
            ),
        ),
        status=Status.FAIL,
        what="it could not be reset",
        fix="reboot the node; power-cycle it where that does not bring the device back",
        until_boot=True,
        cleared_by="GPU reset(",
        cleared_regex=_RECOVERED,
    ),
    KernelLogPattern(
        name="links",
        wordings=(
            Wording(
                source="Linux 5.10 to 6.18, amdgpu_xgmi.c: fields of the PCS error registers",
                substring=" PCS ",
                regex=rf"{_DEV}(?:XGMI|WAFL) PCS \w+ detected",
                example=f"{_AT}XGMI PCS DataLossErr detected",
            ),
            Wording(
                source="Linux 4.20 to 6.18, amdgpu_xgmi.c",
                substring="topology failure on device ",
                regex=rf"{_DEV}XGMI: [GS]et topology failure on device [\da-f]+",
                example=f"{_AT}XGMI: Set topology failure on device 2a, hive 5b, ret -22",
            ),
        ),
        status=Status.WARN,
        what="errors of its links to the other devices",
        fix="reboot the node at the next checkpoint; if it stays, reseat the device",
    ),
    KernelLogPattern(
        name="smu",
        wordings=(
            Wording(
                source="Linux 5.16 to 6.18, pm/swsmu/smu_cmn.c; with its registers since 5.18",
                substring="SMU: I'm not done with your ",
                regex=rf"{_DEV}SMU: I'm not done with your (?:previous )?command",
                example=f"{_AT}SMU: I'm not done with your previous command!",
            ),
        ),
        status=Status.WARN,
        what="its power management did not answer",
        fix="reboot the node at the next checkpoint; where it comes again, update its firmware",
    ),
    KernelLogPattern(
        name="preemption",
        wordings=(
            Wording(
                source="Linux 4.18 to 6.18, amdkfd kfd_device_queue_manager.c; through pr_err "
                "until 6.9",
                substring="The cp might be in an unrecoverable state",
                regex=rf"(?:{_DEV}|{_KFD})The cp might be in an unrecoverable state",
                example="amdgpu: The cp might be in an unrecoverable state due to an unsuccessful "
                "queues preemption",
            ),
            Wording(
                source="Linux 6.0 to 6.18, amdkfd kfd_device_queue_manager.c (MES)",
                substring="MES might be in unrecoverable state",
                regex=rf"(?:{_DEV}|{_KFD})MES might be in unrecoverable state",
                example="amdgpu: MES might be in unrecoverable state, issue a GPU reset",
            ),
        ),
        status=Status.WARN,
        what="its queues could not be stopped",
        fix="look for what comes of the reset that follows; a program may be the cause",
    ),
    KernelLogPattern(
        name="ring",
        wordings=(
            Wording(
                source="Linux 4.15 to 6.9, amdgpu_job.c, through DRM_ERROR; with the device in 6.9",
                substring=" timeout, ",
                regex=rf"(?:amdgpu {_BDF}: )?\[drm:amdgpu_job_timedout \[amdgpu\]\] \*ERROR\* "
                r"ring \S+ timeout, (?:signaled|but soft recovered)",
                example="[drm:amdgpu_job_timedout [amdgpu]] *ERROR* ring comp_1.0.0 timeout, "
                "signaled seq=75, emitted seq=77",
            ),
            Wording(
                source="Linux 6.10 to 6.18, amdgpu_job.c",
                substring=" timeout, ",
                regex=rf"{_DEV}ring \S+ timeout, (?:signaled|but soft recovered)",
                example=f"{_AT}ring sdma0 timeout, signaled seq=75, emitted seq=77",
            ),
        ),
        status=Status.WARN,
        what="work on it did not end in time",
        fix="a program's fault as often as the device's: look whether others on this node end so",
    ),
    KernelLogPattern(
        name="reset",
        wordings=(
            Wording(
                source="Linux 4.16 to 6.18, amdgpu_device.c; with its source since 6.12",
                substring="GPU reset begin!",
                regex=rf"{_DEV}GPU reset begin!",
                example=f"{_AT}GPU reset begin!. Source:  1",
            ),
        ),
        status=Status.WARN,
        what="it was reset",
        fix="its programs were lost: look at the lines before it for why",
    ),
)
