"""How the kernel says that a PCIe slot, port or device is in trouble: one table for each kind of
event. NICs that have their own table (wordings_nic.py) are left to it."""

from __future__ import annotations

from healthchecks.frame.check import Status
from healthchecks.sources.kernel_patterns import KernelLogPattern, Wording
from healthchecks.sources.wordings_nic import BDF

_LOOK = "look what is at this address (lspci -s; below a port: lspci -t), reseat card and riser"
_DRIVER = (  # of what stands in a GPU node; NICs below are left out where nic.kmsg knows the line
    r"(?:pcieport|pci|nvidia|nvidia-nvswitch|nvme|vfio-pci|amdgpu|xe|i915|habanalabs|ahci|i40e|ixgbe"
    r"|igb|igc|e1000e|tg3|hfi1|ena|efa|gve|gvnic|mlx4_core|megaraid_sas|mpt3sas|smartpqi|qla2xxx"
    r"|lpfc|xhci_hcd|cxl_pci|idxd|ast)"
)
_NIC = r"(?:mlx5_core|bnxt_en|ice)"
_SERVICE = r"(?:pcie\w+)?:? "  # Linux before 5.0 names a service: "pciehp 0000:17:01.0:pcie204: "
_HOTPLUG = rf"(?:pcieport|pciehp) {BDF}:{_SERVICE}(?:pciehp: )?"
PCIE_PATTERNS = (
    KernelLogPattern(
        name="removed",
        wordings=(
            Wording(
                source="Linux 4.9 to 6.12, drivers/pci/hotplug/pciehp_ctrl.c "
                "pciehp_handle_presence_or_link_change",
                substring="Slot(",
                regex=_HOTPLUG + r"Slot\([\w-]+\): (?:Card not present|Link Down)",
                example="pcieport 0000:17:01.0: pciehp: Slot(3): Card not present",
            ),
            Wording(
                source="Linux 2.6 to 4.8, drivers/pci/hotplug/pciehp_ctrl.c",
                substring=" on Slot(",
                regex=_HOTPLUG + r"(?:Card not present|slot\([\w-]+\): Link Down event) on Slot\(",
                example="pciehp 0000:00:1c.0:pcie04: Card not present on Slot(3)",
            ),
        ),
        status=Status.WARN,
        what="a card or its link was lost while the node ran",
        fix=_LOOK,
        cleared_by="Slot(",
        cleared_regex=_HOTPLUG + r"Slot\([\w-]+\): (?:Card present|Link Up)",
    ),
    KernelLogPattern(
        name="slot_power",
        wordings=(
            Wording(
                source="Linux 4.9 to 6.12, drivers/pci/hotplug/pciehp_ctrl.c",
                substring="ower fault",
                regex=_HOTPLUG + r"Slot\([\w-]+\): Power fault",
                example="pcieport 0000:17:01.0: pciehp: Slot(3): Power fault",
            ),
        ),
        status=Status.WARN,
        what="a slot had a power fault",
        fix="look at the board's power cables and the BMC's log; reseat the card",
    ),
    KernelLogPattern(
        name="fatal",
        wordings=(
            Wording(
                source="Linux 3.x to 6.10, drivers/pci/pcie/aer.c aer_print_port_info; 6.11 says "
                "Uncorrectable, and message",
                substring="(Fatal) error ",
                regex=rf"pcieport {BDF}: AER: (?:Multiple )?Uncorrect(?:ed|able) \(Fatal\) error "
                r"(?:message )?received",
                example="pcieport 0000:17:01.0: AER: Uncorrected (Fatal) error received: "
                "0000:17:01.0",
            ),
        ),
        status=Status.WARN,
        what="a fatal error was reported to this port",
        fix=_LOOK,
    ),
    KernelLogPattern(
        name="bus",
        wordings=(
            Wording(
                source="Linux 3.x to 6.12, drivers/pci/pcie/aer.c aer_print_error",
                substring="PCIe Bus Error: severity=Uncorrect",
                regex=rf"{_DRIVER} {BDF}: (?:AER: )?PCIe Bus Error: "
                r"severity=Uncorrect(?:ed|able) \((?:Non-)?Fatal\)",
                example="nvidia 0000:1b:00.0: PCIe Bus Error: severity=Uncorrected (Fatal), "
                "type=Transaction Layer, (Requester ID)",
            ),
        ),
        status=Status.WARN,
        what="an uncorrected error on its PCIe link",
        fix=_LOOK,
    ),
    KernelLogPattern(
        name="not_recovered",
        wordings=(
            Wording(
                source="Linux 3.x to 6.12, drivers/pci/pcie/err.c pcie_do_recovery",
                substring="evice recovery failed",
                regex=rf"(?:{_DRIVER}|{_NIC}) {BDF}: AER: [Dd]evice recovery failed",
                example="pcieport 0000:17:01.0: AER: device recovery failed",
            ),
        ),
        status=Status.WARN,
        what="a device below could not be recovered after a PCIe error",
        fix=f"{_LOOK}; reboot the node",
    ),
    KernelLogPattern(
        name="contained",
        wordings=(
            Wording(
                source="Linux 4.6 to 6.12, drivers/pci/pcie/dpc.c; 6.16 in words",
                substring="containment event, status:",
                regex=rf"(?:pcieport|dpc) {BDF}:{_SERVICE}(?:DPC: |DPC )containment event, "
                r"status:0x[\da-f]+",
                example="pcieport 0000:17:01.0: DPC: containment event, status:0x1f01 "
                "source:0x0000",
            ),
        ),
        status=Status.WARN,
        what="what is below this port was taken off the bus after an error",
        fix=f"{_LOOK}; reboot the node",
    ),
    KernelLogPattern(
        name="iommu_fault",
        wordings=(
            Wording(
                source="Linux 3.x to 6.12, drivers/iommu/intel/dmar.c dmar_fault_do_one",
                substring="DMAR: [",
                regex=r"DMAR: \[(?:DMA|INTR)[\w -]*\] Request device \[((?:[\da-f]{4}:)?"
                r"[\da-f]{2}:[\da-f]{2}\.\d)\] ",
                example="DMAR: [DMA Read NO_PASID] Request device [1b:00.0] fault addr "
                "0xc0de000 [fault reason 0x06] PTE Read access is not set",
            ),
            Wording(
                source="Linux 3.x to 6.12, drivers/iommu/amd/iommu.c amd_iommu_report_page_fault",
                substring="AMD-Vi: Event logged [IO_PAGE_FAULT ",
                regex=rf"AMD-Vi: Event logged \[IO_PAGE_FAULT device={BDF}",
                example="AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:41:00.0 domain=0x0000 "
                "address=0xc0de000 flags=0x0050]",
            ),
            Wording(
                source="Linux 4.x to 6.12, the same where a driver has the device",
                substring="AMD-Vi: Event logged [IO_PAGE_FAULT ",
                regex=rf"(?:{_DRIVER}|{_NIC}) {BDF}: AMD-Vi: Event logged \[IO_PAGE_FAULT ",
                example="mlx5_core 0000:41:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT "
                "domain=0x0029 address=0xc0de000 flags=0x0000]",
            ),
        ),
        status=Status.WARN,
        what="reached for memory that the IOMMU does not let it have",
        fix="update its driver; for GPUDirect set iommu=pt, or switch the IOMMU off in the BIOS",
    ),
    KernelLogPattern(
        name="inaccessible",
        wordings=(
            Wording(
                source="Linux 5.7 to 6.12, drivers/pci/pci.c pci_power_up",
                substring="inaccessible",
                regex=rf"(?:{_DRIVER}|{_NIC}) {BDF}: (?:Unable to|can't) change power state from "
                r"\w+ to \w+,? \(?(?:device|config space) inaccessible",
                example="nvme 0000:5e:00.0: Unable to change power state from D3cold to D0, "
                "device inaccessible",
            ),
            Wording(
                source="Linux 4.18 to 6.12, drivers/pci/pci.c pci_dev_wait",
                substring="; giving up",
                regex=rf"(?:{_DRIVER}|{_NIC}) {BDF}: not ready \d+ms after [\w ]+; giving up",
                example="vfio-pci 0000:1b:00.0: not ready 65535ms after FLR; giving up",
            ),
        ),
        status=Status.WARN,
        what="does not answer on the PCIe bus",
        fix=f"{_LOOK}; reboot the node, then power cycle its host",
    ),
)
