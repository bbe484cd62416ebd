from pathlib import Path

import pytest

from edgelm.bench.virtualization import find_virtualization

GUEST, HOST = "processor: 0\nflags\t: fpu hypervisor sse2\n", "processor: 0\nflags\t: fpu sse2\n"


def tree(root: Path, **files: str) -> Path:
    """A tree of files; __ in a name is a slash."""
    for name, content in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc__cpuinfo": HOST}, ""),
        ({"proc__cpuinfo": HOST, "sys__class__dmi__id__sys_vendor": "LENOVO\n"}, ""),
        ({"proc__cpuinfo": GUEST}, "a hypervisor without a name"),
        ({"proc__cpuinfo": GUEST, "sys__class__dmi__id__product_name": "KVM\n"}, "KVM"),
        ({"proc__cpuinfo": GUEST, "sys__class__dmi__id__sys_vendor": "VMware, Inc.\n"}, "VMware"),
        ({"proc__cpuinfo": GUEST, "sys__class__dmi__id__product_name": "Virtual Machine\n"}, "Hyper-V"),
        ({"proc__cpuinfo": GUEST, "sys__hypervisor__type": "xen\n"}, "Xen"),
        (
            {"proc__cpuinfo": HOST, "sys__class__dmi__id__sys_vendor": "Amazon EC2", "sys__class__dmi__id__product_name": "c7i.metal-24xl"},
            "",
        ),
        ({"proc__cpuinfo": "processor: 0\n", "proc__device-tree__model": "NVIDIA Jetson Orin Nano\0"}, ""),
        ({"proc__cpuinfo": "processor: 0\n", "proc__device-tree__compatible": "linux,dummy-virt\0"}, "QEMU"),
        ({"proc__cpuinfo": "processor: 0\n", "proc__device-tree__hypervisor__compatible": "xen,xen-4.14\0xen,xen\0"}, "xen,xen-4.14"),
        ({"proc__cpuinfo": "processor: 0\n"}, None),
        ({}, None),
    ],
)
def test_hypervisors(tmp_path: Path, files: dict[str, str], expected: str | None) -> None:
    assert find_virtualization(tree(tmp_path, **files)) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({".dockerenv": ""}, "docker"),
        ({"run__.containerenv": ""}, "podman"),
        ({"run__systemd__container": "systemd-nspawn\n"}, "systemd-nspawn"),
        ({"proc__1__cgroup": "0::/kubepods/besteffort/pod7/ab\n"}, "kubernetes"),
        ({"proc__1__cgroup": "0::/init.scope\n"}, ""),
    ],
)
def test_containers(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    assert find_virtualization(tree(tmp_path, proc__cpuinfo=HOST, **files)) == expected


def test_a_container_in_a_virtual_machine_is_both(tmp_path: Path) -> None:
    files = {"proc__cpuinfo": GUEST, "sys__class__dmi__id__product_name": "KVM", ".dockerenv": ""}
    assert find_virtualization(tree(tmp_path, **files)) == "KVM, docker"


def test_a_container_is_told_even_where_the_machine_is_not(tmp_path: Path) -> None:
    assert find_virtualization(tree(tmp_path, **{".dockerenv": ""})) == "docker"
