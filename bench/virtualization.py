"""Whether this is a virtual machine or a container: their figures move with what others do on the same hardware."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

# Words of the DMI strings by which hypervisors name their machines.
_VENDORS: Mapping[str, str] = MappingProxyType(
    {
        "kvm": "KVM",
        "qemu": "QEMU",
        "vmware": "VMware",
        "virtualbox": "VirtualBox",
        "innotek": "VirtualBox",
        "xen": "Xen",
        "parallels": "Parallels",
        "bhyve": "bhyve",
        "amazon ec2": "Amazon EC2",
        "google compute engine": "Google Compute Engine",
        "openstack": "OpenStack",
        "virtual machine": "Hyper-V",
        "apple virtualization": "Apple Virtualization",
    }
)
_CGROUP_WORDS: Mapping[str, str] = MappingProxyType(
    {"docker": "docker", "kubepods": "kubernetes", "libpod": "podman", "lxc": "lxc", "containerd": "containerd"}
)
_TIMEOUT_S = 5


def find_virtualization(root: Path = Path("/")) -> str | None:
    """Names of the hypervisor and of the container, joined by a comma; "" for neither, None where it cannot be known.

    Args:
        root: of the file system, for tests. Only of the real one systemd-detect-virt is asked, if it is there.
    """
    asked = root == Path("/")
    machine = (_ask_systemd("--vm") if asked else "") or _hypervisor(root)
    container = (_ask_systemd("--container") if asked else "") or _container(root)
    if machine is None and not container:
        return None
    return ", ".join(name for name in (machine, container) if name)


def _hypervisor(root: Path) -> str | None:
    """ "" for real hardware. CPUs other than x86 have no flag: then only a machine that names its maker is taken for real."""
    named = _named_hypervisor(root)
    if named:
        return named
    flags = _cpu_flags(root)
    if flags is not None:
        return "a hypervisor without a name" if "hypervisor" in flags else ""
    makers = (_text(root / "sys/class/dmi/id/sys_vendor"), _text(root / "proc/device-tree/model"))
    return "" if any(maker.strip("\0 \n") for maker in makers) else None


def _named_hypervisor(root: Path) -> str:
    kind = _text(root / "sys/hypervisor/type").strip()
    if kind:
        return kind.capitalize()
    compatible = _text(root / "proc/device-tree/hypervisor/compatible")
    if compatible:
        return compatible.strip("\0").split("\0")[0]
    if "dummy-virt" in _text(root / "proc/device-tree/compatible"):
        return "QEMU"
    dmi = " ".join(
        _text(root / f"sys/class/dmi/id/{name}") for name in ("product_name", "sys_vendor", "board_vendor", "bios_vendor")
    ).lower()
    bare_metal = ".metal" in dmi  # Amazon's machines without a hypervisor carry its name all the same
    return "" if bare_metal else next((name for word, name in _VENDORS.items() if word in dmi), "")


def _cpu_flags(root: Path) -> set[str] | None:
    """Of the first CPU; None on machines that are no x86."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return set(value.split())
    return None


def _container(root: Path) -> str:
    for file, name in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
        if (root / file).exists():
            return name
    told = _text(root / "run/systemd/container").strip()
    if told:
        return told
    groups = _text(root / "proc/1/cgroup")
    return next((name for word, name in _CGROUP_WORDS.items() if word in groups), "")


def _ask_systemd(kind: str) -> str:
    """What systemd-detect-virt says; "" where it finds nothing or is not there."""
    program = shutil.which("systemd-detect-virt")
    if program is None:
        return ""
    try:
        said = subprocess.run([program, kind], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return "" if said == "none" else said


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
