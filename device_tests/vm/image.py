"""Makes the machine: python -m device_tests.vm.image FOLDER --source "deb [signed-by=KEYRING] MIRROR trixie main"

An apt of its own, with lists and cache below FOLDER, downloads arm64 packages from a Debian mirror; nothing is installed here and no
privilege is needed. From them it writes `kernel` and `initrd.gz`: busybox, Android's adbd as Debian builds it, and the modules of a
network card. Needs apt-get and dpkg-deb, and 200 MB.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from exporter.errors import ToolchainMissing, UsageError

KERNEL, INITRD = "kernel", "initrd.gz"
DAEMON, KERNEL_PACKAGE = "adbd", "linux-image-cloud-arm64"
DAEMON_PATH = "usr/lib/android-sdk/platform-tools/adbd"
VIRTIO = ("virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci")
MODULES = (*VIRTIO, "failover", "net_failover", "virtio_net")
"""In the order in which they depend on each other; those that the kernel has built in are not there as files."""
PROPERTIES = "ro.kernel.qemu=1\nro.product.model=arm64-vm\n"
INIT = """#!/bin/sh
export PATH=/usr/bin HOME=/data/local/tmp TMPDIR=/data/local/tmp
/usr/bin/busybox --install -s /usr/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts; mount -t devpts pts /dev/pts
for name in {modules}; do [ -e /modules/$name.ko ] && insmod /modules/$name.ko; done
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
cd /data/local/tmp; echo {ready}; /{daemon}
poweroff -f
"""
READY = "adbd starts"
GETPROP = """#!/bin/sh
sed -n "s/^$1=//p" /etc/properties
"""
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "system/bin": "../usr/bin"}


def make_machine(folder: Path, source: str) -> None:
    """Raises ToolchainMissing where a program or a package is not to be had."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise ToolchainMissing(f"there is no {program}", "make the machine on Debian or a system derived from it")
    root, modules = folder / "root", folder / "kernel-package"
    environment = _private_apt(folder / "apt", source)
    _fetch((DAEMON, "busybox-static"), folder / "packages", root, environment)
    _fetch((KERNEL_PACKAGE,), folder / "kernel-packages", modules, environment, only="linux-image-")
    _complete(root, modules)
    (found,) = modules.glob("boot/vmlinuz-*")
    shutil.copy(found, folder / KERNEL)
    with gzip.open(folder / INITRD, "wb", 1) as archive:
        for piece in cpio(root):
            archive.write(piece)


def _private_apt(folder: Path, source: str) -> dict[str, str]:
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(f"{source}\n", encoding="utf-8")
    settings = {
        "APT::Architecture": "arm64",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
    }
    lines = [f'{key} "{value}";' for key, value in settings.items()]
    (folder / "apt.conf").write_text("\n".join([*lines, 'APT::Architectures {"arm64";};', ""]), encoding="utf-8")
    environment = {**os.environ, "APT_CONFIG": str(folder / "apt.conf")}
    _run(["apt-get", "-qq", "update"], folder, environment)
    return environment


def _fetch(names: Sequence[str], packages: Path, root: Path, environment: dict[str, str], only: str = "") -> None:
    """Downloads packages with all that they need, and unpacks those whose names begin with `only`."""
    packages.mkdir(parents=True, exist_ok=True)
    wanted = _run(["apt-get", "-s", "--no-install-recommends", "install", *names], packages, environment)
    lines = [line.split() for line in wanted.splitlines() if line.startswith("Inst ")]
    _run(
        ["apt-get", "-qq", "download", *(line[1] for line in lines if line[1].startswith(only))], packages, environment
    )
    root.mkdir(parents=True, exist_ok=True)
    for name, target in LINKS.items():
        if not only and not (root / name).is_symlink():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).parent.joinpath(target).resolve().mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(target)
    for package in sorted(packages.glob("*.deb")):
        unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", str(root)], input=unpacked, check=True)


def _complete(root: Path, modules: Path) -> None:
    """What makes a root of a folder of unpacked packages: the first program, the shell's commands, properties, and modules."""
    for name in ("proc", "sys", "dev", "tmp", "data/local/tmp", "data/misc/adb", "var/log", "etc", "modules"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "usr/bin/sh").unlink(missing_ok=True)
    (root / "usr/bin/sh").symlink_to("busybox")
    for name in MODULES:
        for found in modules.rglob(f"{name}.ko*"):
            data = found.read_bytes()
            (root / "modules" / f"{name}.ko").write_bytes(lzma.decompress(data) if found.suffix == ".xz" else data)
    (root / "etc/properties").write_text(PROPERTIES, encoding="utf-8")
    (root / "etc/passwd").write_text(
        "root:x:0:0::/data/local/tmp:/bin/sh\nshell:x:2000:2000::/data/local/tmp:/bin/sh\n", encoding="utf-8"
    )
    init = INIT.format(modules=" ".join(MODULES), ready=READY, daemon=DAEMON_PATH)
    for name, text in (("init", init), ("usr/bin/getprop", GETPROP)):
        (root / name).write_text(text, encoding="utf-8")
        (root / name).chmod(0o755)


def cpio(root: Path) -> Iterator[bytes]:
    """An archive in the "newc" format that Linux unpacks as its first file system (Documentation/driver-api/early-userspace of Linux)."""
    entries = sorted(path for path in root.rglob("*") if not str(path.relative_to(root)).startswith("usr/share"))
    for number, path in enumerate(entries, 1):
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            data = os.readlink(path).encode()
        else:
            data = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
        yield _entry(str(path.relative_to(root)), number, info.st_mode, data)
    yield _entry("TRAILER!!!", 0, 0, b"")


def _entry(name: str, number: int, mode: int, data: bytes) -> bytes:
    label = name.encode() + b"\0"
    #         inode, mode, uid, gid, links, mtime, size, device (4 times), length of the name, checksum
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(label), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + label
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolchainMissing(
            f"{' '.join(command[:4])}: {done.stderr.strip()[-300:]}", "check --source and the network"
        )
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", required=True, help="line of a sources.list, of Debian 13 or later")
    arguments = parser.parse_args()
    if (arguments.folder / INITRD).exists():
        raise UsageError(f"{arguments.folder} holds a machine already", "name another folder")
    make_machine(arguments.folder.resolve(), arguments.source)
    print(f"export SLM_EXPORT_VM={arguments.folder.resolve()}")


if __name__ == "__main__":
    main()
