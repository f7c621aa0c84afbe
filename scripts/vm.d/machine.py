"""Boots the image and talks to `guest` in it.

Guarantees: the image is never changed (snapshot=on), two machines share nothing that is written, and no qemu
outlives this process, however that ends. The command's bytes arrive as they were written.
"""

import fcntl
import io
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from hardware import Port, accelerator, base, drive, pool_disk, sparse
from image import HERE, REPOSITORY, Failure, say
from powercut import LossyDisk

BOOT_SECONDS = 300  # 15 are usual; a loaded machine without KVM may take several times that
OUT_BYTES = 4 << 30
TIMED_OUT = 124  # as timeout(1) says it


@dataclass
class Job:
    argv: list[str]
    pool: str = "fresh"  # fresh, kept (on `disk`), none
    pool_size: int = 8
    disk: Path | None = None
    lossy: str | None = None  # the seed by which unflushed writes are lost in a cut
    out: Path | None = None
    timeout: float | None = None
    memory: int = 3072
    cpus: int = 2
    systemd: bool = False
    tty: bool = False
    verbose: bool = False
    console: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    handed: list[Path] = field(default_factory=list)  # beside the repository's own files
    cut_line: re.Pattern[bytes] | None = None
    cut_seconds: float | None = None

    @property
    def cuts(self) -> bool:
        return self.cut_line is not None or self.cut_seconds is not None


class NotUp(Failure):
    """The machine died before the command began."""


def run(image: Path, job: Job) -> int:
    """The command's exit status, 124 after the timeout; for a cut, 0 if it was cut and 1 if it ended before."""
    try:
        return run_once(image, job)
    except NotUp as failure:
        # Emulated, one start of some 30 ends in a panic of the guest's kernel before it has found its disks.
        say(f"{failure}\nstarting it once more")
        return run_once(image, job)


def run_once(image: Path, job: Job) -> int:
    with ExitStack() as stack:
        room = stack.enter_context(own_room())
        console = job.console or room / "console"
        lossy: LossyDisk | None = None
        drives = [
            drive(image / "root.img", "root", "snapshot=on"),
            drive(payload(room, job), "payload", "readonly=on"),
        ]
        if job.out:
            drives.append(drive(sparse(room / "out", OUT_BYTES), "out", "cache=unsafe"))
        if job.pool == "fresh":
            drives.append(drive(pool_disk(room / "pool", job.pool_size), "pool", "cache=unsafe"))
        if job.pool == "kept":
            assert job.disk
            if not job.disk.exists():
                pool_disk(job.disk, job.pool_size)
            if job.lossy is not None:
                lossy = LossyDisk(job.disk, room, job.lossy)
                drives.append(lossy.arguments("pool"))
            else:
                # A flush of the guest reaches the file before it is answered, and all else unless this machine fails.
                drives.append(drive(job.disk, "pool", "cache=writeback"))
        ports = {name: Port(name, room / f"{name}.port") for name in ("out", "err", "ctl")}
        for port in ports.values():
            stack.callback(port.close)
        command = [
            *base(image, accelerator(image), job.memory, job.cpus),
            "-append",
            " ".join(kernel_line(job)),
            *(argument for port in ports.values() for argument in port.arguments()),
            *(argument for one in drives for argument in one),
            *(["-chardev", "stdio,id=tty,signal=off", "-serial", "chardev:tty"] if job.tty else []),
            *(["-serial", f"file:{console}"] if not job.tty else []),
        ]
        if job.verbose:
            say(shlex.join(command))
        complaints = stack.enter_context(open(room / "qemu", "w+b"))
        machine = subprocess.Popen(
            command,
            stdin=None if job.tty else subprocess.DEVNULL,
            stdout=None if job.tty else complaints,
            stderr=complaints,
            # Its files, like those of snapshot=on, go when the folder goes.
            env={**os.environ, "TMPDIR": str(room)},
            start_new_session=not job.tty,
        )
        stack.callback(machine.wait)
        stack.callback(machine.kill)
        conversation = Conversation(job, machine, ports)
        outcome = conversation.hold()
        if lossy:
            say(lossy.settle(cut=outcome.stopped))
        if outcome.sentence:
            complaints.seek(0)
            said = complaints.read()
            if outcome.died and console.exists():
                said += console.read_bytes()[-8000:]  # of a kernel that has died, the cause stands first
            kind = Failure if conversation.ready else NotUp
            raise kind(f"{outcome.sentence}\n{said.decode(errors='replace')}".rstrip())
        if job.out and not outcome.stopped:
            fetch(room / "out", job.out)
        return outcome.status


@contextmanager
def own_room() -> Iterator[Path]:
    """A folder for one machine. Those of processes that were killed go too: nobody holds their lock."""
    base = Path(os.environ.get("TMPDIR") or "/var/tmp")
    for left in base.glob("zfsfs-vm-*"):
        with suppress(OSError), locked(left):
            shutil.rmtree(left)
    room = Path(tempfile.mkdtemp(prefix=".zfsfs-vm-", dir=base))
    with locked(room):
        # Only locked folders have the name that is looked for above.
        room = room.rename(base / room.name[1:])
        try:
            yield room
        finally:
            shutil.rmtree(room, ignore_errors=True)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def kernel_line(job: Job) -> list[str]:
    words = ["console=ttyS0", "panic=-1", "mitigations=off", "nokaslr", "random.trust_cpu=on"]
    words += ["quiet"] if job.tty else ["loglevel=5"]
    if job.systemd:
        # Straight to the one unit: it pulls in the basics, and none of what a whole system starts.
        return [*words, "init=/sbin/init", "systemd.unit=zfsfs-vm.service", "systemd.show_status=0"]
    return [*words, "init=/usr/lib/zfsfs-vm/start"]


def payload(room: Path, job: Job) -> Path:
    """What the guest needs of us, as a tarball that is also a disk."""
    tracked = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", REPOSITORY, "ls-files", "-coz", "--exclude-standard"],
        capture_output=True,
    )
    if tracked.returncode:
        raise Failure(f"cannot list the repository's files: {tracked.stderr.decode().strip()}")
    size = shutil.get_terminal_size()
    settings = {
        "POOL": job.pool,
        "TTY": str(int(job.tty)),
        "ROWS": str(size.lines),
        "COLUMNS_OF_HOST": str(size.columns),
        "TERM_OF_HOST": os.environ.get("TERM", "dumb") if job.tty else "dumb",
    }
    file = room / "payload"
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(HERE / "guest", "guest")
        add(tar, "settings", "".join(f"{k}={shlex.quote(v)}\n" for k, v in settings.items()))
        add(tar, "environment", "".join(f"export {k}={shlex.quote(v)}\n" for k, v in job.environment.items()))
        add(tar, "argv", "".join(f"{word}\0" for word in job.argv))
        directory = tarfile.TarInfo("repo")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(directory)
        for name in sorted(set(tracked.stdout.split(b"\0")) - {b""}):
            path = REPOSITORY / os.fsdecode(name)
            try:
                tar.add(path, f"repo/{os.fsdecode(name)}", recursive=False)
            except FileNotFoundError:
                continue  # deleted, or just being replaced by its author
        for path in job.handed:
            if (REPOSITORY / path.name).exists():
                raise Failure(f"{path} can't be handed in: the repository has something of that name")
            tar.add(path, f"repo/{path.name}")
    return file


def add(tar: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode(errors="surrogateescape")
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))


def fetch(file: Path, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "r:") as tar:
        # The filter came with 3.11.4; the archive is our own guest's.
        if hasattr(tarfile, "tar_filter"):
            tar.extractall(into, filter="tar")
        else:
            tar.extractall(into)


@dataclass
class Outcome:
    status: int = 0
    stopped: bool = False  # by us, before the command's end
    sentence: str = ""  # why there is no status
    died: bool = False  # and the kernel's last words may tell more


class Conversation:
    """From power-on to the end of the last port. Deadlines are looked at between any two reads."""

    def __init__(self, job: Job, machine: subprocess.Popen[bytes], ports: dict[str, Port]) -> None:
        self.job, self.machine, self.ports = job, machine, ports
        self.outcome: Outcome | None = None
        self.began = time.monotonic()
        self.ready: float | None = None

    def hold(self) -> Outcome:
        with selectors.DefaultSelector() as ready:
            for port in self.ports.values():
                ready.register(port.listener, selectors.EVENT_READ, (port, self.connect))
            open_ports = len(self.ports)
            while open_ports:
                for key, _ in ready.select(timeout=0.05 if self.job.cut_seconds else 0.2):
                    port, what = key.data
                    open_ports -= not what(port, ready)
                if self.outcome is None:
                    self.look_at_the_clock()
                if self.machine.poll() is not None and not any(port.peer for port in self.ports.values()):
                    break  # it did not even connect
        self.machine.wait()
        return self.outcome or Outcome(sentence="it went off by itself before the command ended", died=True)

    def connect(self, port: Port, ready: selectors.BaseSelector) -> bool:
        ready.unregister(port.listener)
        ready.register(port.accept(), selectors.EVENT_READ, (port, self.read))
        return True

    def read(self, port: Port, ready: selectors.BaseSelector) -> bool:
        assert port.peer
        data = port.peer.recv(1 << 16)
        if not data:
            ready.unregister(port.peer)
            return False
        if port.name == "ctl":
            self.lines(port, data, self.control)
        else:
            write_all(1 if port.name == "out" else 2, data)
            if self.job.cut_line:
                self.lines(port, data, self.watch)
        return True

    def lines(self, port: Port, data: bytes, use: Callable[[bytes], None]) -> None:
        *complete, port.rest = (port.rest + data).split(b"\n")
        for line in complete:
            use(line)

    def watch(self, line: bytes) -> None:
        if self.outcome is None and self.job.cut_line and self.job.cut_line.search(line):
            self.cut(f"after the line {line.decode(errors='replace')!r}")

    def control(self, line: bytes) -> None:
        if self.outcome is not None:
            return
        word, _, rest = line.decode(errors="replace").partition(" ")
        if word == "ready":
            self.ready = time.monotonic()
            if self.job.verbose:
                say(f"booted in {self.ready - self.began:.1f} s")
        elif word == "failed":
            self.stop(signal.SIGKILL, Outcome(sentence=rest))
        elif word == "status" and self.job.cuts:
            say(f"not cut: the command ended before, with status {rest}")
            self.stop(signal.SIGTERM, Outcome(1))
        elif word == "status":
            self.stop(signal.SIGTERM, Outcome(int(rest)))

    def look_at_the_clock(self) -> None:
        now, job = time.monotonic(), self.job
        if self.ready is None:
            if now - self.began > BOOT_SECONDS:
                self.stop(signal.SIGKILL, Outcome(sentence=f"not up after {BOOT_SECONDS} s", died=True))
        elif job.cut_seconds is not None and now - self.ready >= job.cut_seconds:
            self.cut(f"after {job.cut_seconds:g} s")
        elif job.timeout is not None and now - self.ready >= job.timeout:
            say(f"stopped: the command had not ended after {job.timeout:g} s")
            self.stop(signal.SIGKILL, Outcome(TIMED_OUT, stopped=True))

    def cut(self, when: str) -> None:
        self.stop(signal.SIGKILL, Outcome(0, stopped=True))
        say(f"power cut {when}")

    def stop(self, how: signal.Signals, outcome: Outcome) -> None:
        self.machine.send_signal(how)
        self.outcome = outcome


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BrokenPipeError:
            # As in any pipeline: nobody reads on, so there is nothing more to do.
            sys.exit(128 + signal.SIGPIPE)
