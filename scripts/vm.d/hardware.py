"""What the machine is made of: qemu and its accelerator, its disks, the ports to the guest."""

import json
import os
import socket
import struct
import subprocess
from pathlib import Path

from image import Failure, cache, say

SECTORS_BEFORE_POOL = 2048

# All that can be emulated but what makes it slow: copying and clearing memory byte by byte (erms, fsrm: a third of
# the speed), a fifth level of page tables, and keys and checks at each entry into the kernel.
_EMULATED = "max,-erms,-fsrm,-la57,-smap,-smep,-pku"


def base(image: Path, accelerate: list[str], memory: int, cpus: int) -> list[str]:
    # setpriv: the kernel kills qemu with us, even when we get no chance to.
    return [
        "setpriv", "--pdeathsig", "KILL",
        "qemu-system-x86_64", *accelerate, "-smp", str(cpus), "-m", str(memory), "-nodefaults", "-no-user-config",
        "-no-reboot", "-display", "none", "-monitor", "none",
        "-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd"),
        "-device", "virtio-serial-pci",
    ]  # fmt: skip


def accelerator(image: Path) -> list[str]:
    """KVM if a machine really runs under it; ZFSFS_VM_ACCEL=kvm or =tcg spares the question."""
    kvm, tcg = ["-accel", "kvm", "-cpu", "host"], ["-accel", "tcg,thread=multi", "-cpu", _EMULATED]
    if chosen := os.environ.get("ZFSFS_VM_ACCEL"):
        if chosen not in ("kvm", "tcg"):
            raise Failure(f"ZFSFS_VM_ACCEL is kvm or tcg, not {chosen!r}")
        return kvm if chosen == "kvm" else tcg
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return tcg
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = cache() / "kvm.json"
    try:
        answers = json.loads(known.read_text())
    except (FileNotFoundError, ValueError):
        answers = {}
    if answers.get("boot") != boot:
        # Opening the device proves nothing: a kernel may stall in it for ever. The probe boots ours as far as
        # its initrd, which powers off; that takes less than a second where it works.
        probe = [*base(image, kvm, 512, 1), "-append", "zfsfs.probe panic=-1"]
        try:
            quiet = subprocess.DEVNULL
            works = subprocess.run(probe, stdin=quiet, stdout=quiet, stderr=quiet, timeout=4).returncode == 0
        except subprocess.TimeoutExpired:
            works = False
        answers = {"boot": boot, "works": works}
        part = known.with_name(f"{known.name}.{os.getpid()}")
        part.write_text(json.dumps(answers))
        part.replace(known)
        if not works:
            say("/dev/kvm is there but does not run a kernel; emulating")
    return kvm if answers["works"] else tcg


class Port:
    """The host's end of a virtio port. We listen before qemu starts, so no byte finds nobody there."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(os.fspath(path))
        self.listener.listen(1)
        self.peer: socket.socket | None = None
        self.rest = b""  # the line that is not complete yet

    def arguments(self) -> list[str]:
        return [
            "-chardev", f"socket,id={self.name},path={self.path}",
            "-device", f"virtserialport,chardev={self.name},name={self.name}",
        ]  # fmt: skip

    def accept(self) -> socket.socket:
        self.peer, _ = self.listener.accept()
        return self.peer

    def close(self) -> None:
        for end in (self.peer, self.listener):
            if end:
                end.close()


def drive(file: Path, serial: str, options: str) -> list[str]:
    name = str(file).replace(",", ",,")
    return [
        "-drive", f"if=none,id={serial},format=raw,file={name},discard=unmap,{options}",
        "-device", f"virtio-blk-pci,drive={serial},serial={serial}",
    ]  # fmt: skip


def sparse(file: Path, size: int) -> Path:
    with open(file, "xb") as new:
        new.truncate(size)
    return file


def pool_disk(file: Path, gigabytes: int) -> Path:
    """With one partition: given a whole disk, zpool would partition it and wait for a udev that does not run."""
    size = gigabytes << 30
    start, sectors = SECTORS_BEFORE_POOL, min((size >> 9) - SECTORS_BEFORE_POOL, 0xFFFFFFFF)
    part = file.with_name(f"{file.name}.part-{os.getpid()}")
    sparse(part, size)
    with open(part, "r+b") as new:
        new.seek(446)
        new.write(struct.pack("<B3sB3sII", 0, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", start, sectors))
        new.seek(510)
        new.write(b"\x55\xaa")
    part.rename(file)  # never a half-made disk under the name
    return file
