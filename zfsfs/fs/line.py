"""The line to the kernel: who reads requests from /dev/fuse, and how long it waits for the next.

pyfuse3 costs a coroutine, a lock and two passes through the event loop for a request, and sleeps between any two; in
that time the C example has answered. So the line stands between the kernel and pyfuse3: it reads each request itself,
gives it to the fast lane (lane.py), and passes on only what the lane leaves; pyfuse3 gets those through a socket
that takes the place of its descriptor, and does not know. While requests keep coming the line asks for the next one
again and again instead of sleeping: most processes ask as soon as they are answered, and waking a sleeper costs more
than answering (20-50 us on a virtual machine). For the same reason the processors of who waits for an answer are kept
from sleeping (awake.py). While they are not, a few replies are held back when there are more requests to answer: who
is told while another processor is awake already is woken more cheaply.

Guarantees
- Each request is answered once, by the lane, a worker or pyfuse3.
- The event loop gets its turn every `TURN` seconds at the latest.

Assumes: libfuse reads whole requests from its descriptor and writes whole replies; one descriptor of /dev/fuse is
opened by `pyfuse3.init`. Where that is not so `take_over` says so, and pyfuse3 serves alone; nobody who waits can be
interrupted then.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable

import pyfuse3
import trio

from zfsfs.errors import StoreError, ZfsfsError
from zfsfs.fs import wire
from zfsfs.fs.asked import Context
from zfsfs.fs.awake import Awake
from zfsfs.fs.backing import Backings
from zfsfs.fs.caller import Interruption
from zfsfs.fs.control import FIRST_INODE
from zfsfs.fs.lane import HANDLERS, PREPARED, Handler, Lane
from zfsfs.fs.own_lane import OWN

_WANTED = (
    wire.ASYNC_READ | wire.ATOMIC_O_TRUNC | wire.BIG_WRITES | wire.DO_READDIRPLUS | wire.ASYNC_DIO
    | wire.WRITEBACK_CACHE | wire.PARALLEL_DIROPS | wire.POSIX_ACL | wire.MAX_PAGES | wire.CACHE_SYMLINKS
    | wire.AUTO_INVAL_DATA | wire.DONT_MASK
)  # fmt: skip

log = logging.getLogger(__name__)

_Task = Callable[[bytes, Context], Awaitable[None]]

#: Seconds for which the next request is waited for without sleeping.
SPIN = 60e-6
#: Seconds after which the event loop gets a turn, while requests keep coming.
TURN = 4e-3
#: Seconds after which one more moment without answers would not be noticed.
IDLE = 1.0
#: The most replies that are held back (of four processes at work each then waits a tenth less).
_MOST_HELD = 4
#: How many inodes are forgotten before the event loop gets a turn.
_FEW_FORGOTTEN = 1000
#: The caller was killed and its request withdrawn, or the mount is gone.
_GONE = (errno.ENOENT, errno.ENODEV, errno.EBADF)
#: Bytes in a write, and in a read.
MOST = 1 << 20
#: Bytes in what pyfuse3 is asked and replies, through a socket: names and attributes, no contents.
_MOST_INNER = 1 << 16
#: The oldest protocol that has all we need of libfuse. It then doesn't splice, which a socket is not made for.
_INNER_MINOR = 13


def _packed(unique: int, number: int, reply: bytes) -> bytes:
    """The answer to a request, as the kernel reads it."""
    return wire.REPLY.pack(wire.REPLY_SIZE + len(reply), -number, unique) + reply


def descriptors() -> set[int]:
    """Our descriptors of /dev/fuse."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.add(int(name))
    return found


class Line:
    """See the module."""

    def __init__(self, device: int, outer: socket.socket) -> None:
        self._device = device
        self._outer = outer
        self._buffer = bytearray(MOST + 4096)
        self._view = memoryview(self._buffer)
        self._waiting: deque[bytes] = deque()
        self._more = trio.Event()
        self._held: list[bytes] = []
        self._pid = 0  # who asked last
        self._last = time.perf_counter()  # when nobody asked any more
        self._handlers = dict(HANDLERS)
        self._interruptions: dict[int, Interruption] = {}  # of requests that tasks are about to answer
        self.awake = Awake()
        self._asked = 0  # how often in this burst
        self.lane: Lane
        self._nursery: trio.Nursery
        self._pump = threading.Thread(target=self._pass_back, name="zfsfs-replies", daemon=True)
        self._init_unique = 0
        self.may_pass = False  # whether the kernel may read and write open files by itself, if it can
        os.set_blocking(device, False)

    @staticmethod
    def take_over(before: set[int]) -> Line | None:
        """Put a socket in the place of the descriptor that `pyfuse3.init` opened, all others being `before`."""
        new = descriptors() - before
        if len(new) != 1:
            log.warning("pyfuse3 serves alone: it has %d descriptors of /dev/fuse", len(new))
            return None
        (theirs,) = new
        device = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 3)
        outer, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (outer, inner):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _MOST_INNER)
        os.dup2(inner.fileno(), theirs, inheritable=False)
        inner.close()
        return Line(device, outer)

    # Answers.

    def answer(self, unique: int, number: int, reply: bytes = b"") -> None:
        """Answer a request with an errno, or 0 and the reply. From any thread."""
        self._send(_packed(unique, number, reply))

    def _send(self, reply: bytes) -> None:
        try:
            os.write(self._device, reply)
        except OSError as failure:
            if failure.errno not in _GONE:
                raise

    def _tell(self) -> None:
        """Send what was held back."""
        held, self._held = self._held, []
        for reply in held:
            self._send(reply)

    # Requests.

    async def serve(self) -> None:
        """Answer requests until the tree is unmounted."""
        self._pump.start()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._pass_on)
            nursery.start_soon(self.awake.watch)
            while True:
                await trio.lowlevel.wait_readable(self._device)
                while busy := self._burst():
                    await trio.lowlevel.checkpoint()
                if busy is None:
                    break
            nursery.cancel_scope.cancel()
        pyfuse3.terminate()

    def _burst(self) -> bool | None:
        """Answer what comes. True when it is others' turn, False when nothing more came, None when unmounted."""
        try:
            return self._answer_all()
        finally:
            self._tell()
            self._last = time.perf_counter()
            asked, self._asked = self._asked, 0
            self.awake.asked(asked)

    def is_idle(self) -> bool:
        """Whether nobody has asked for anything of late."""
        return time.perf_counter() - self._last > IDLE

    def _answer_all(self) -> bool | None:
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        ready, device, buffers, clock = poll.poll, self._device, [self._view], time.perf_counter
        give_way = os.sched_yield
        started = now = clock()
        end = started + SPIN
        crowded = False  # the last request was waiting already: so may be the next
        while now - started < TURN:
            if not crowded:
                crowded = True
                if self._held:
                    self._tell()
                while not ready(0):
                    crowded = False
                    give_way()  # whoever is to ask next may be waiting for this processor
                    now = clock()
                    if now > end:
                        return False
            try:
                size = os.readv(device, buffers)
            except BlockingIOError:
                crowded = False
                continue
            except OSError as failure:
                if failure.errno in (errno.EINTR, errno.ENOENT):
                    continue  # the request was withdrawn
                if failure.errno == errno.ENODEV:
                    return None
                raise
            self._asked += 1
            try:
                if not self._take(size):
                    return True  # pyfuse3's turn
            except MemoryError as failure:
                _, opcode, unique, *_ = wire.HEADER.unpack_from(self._buffer)
                self._fail(opcode, unique, failure)
            now = clock()
            end = now + SPIN
        return True

    def _take(self, size: int) -> bool:
        """Answer a request; False when it was passed on."""
        _, opcode, unique, ino, uid, gid, pid, _ = wire.HEADER.unpack_from(self._buffer)
        handler = self._handlers.get(opcode)
        body = self._view[wire.HEADER_SIZE : size]
        if handler is None:
            return self._take_other(opcode, unique, ino, body, size)
        ctx = Context(uid, gid, pid)
        if not self._handle(handler, opcode, unique, ino, ctx, body):
            if ino >= FIRST_INODE and opcode in PREPARED and self._inside(opcode, body):
                self._start(self._later, unique, bytes(self._view[:size]), ctx)
            elif ino < FIRST_INODE and opcode in OWN:
                self._start(self._own, unique, bytes(self._view[:size]), ctx)
            else:
                self._pass(size)
            return False
        return True

    @staticmethod
    def _inside(opcode: int, body: memoryview) -> bool:
        """Whether the other directory that a request names, if it does, lies in an area, too."""
        if opcode in (wire.RENAME, wire.RENAME2, wire.LINK):
            return bool(wire.U64.unpack_from(body)[0] >= FIRST_INODE)
        return True

    def _start(self, task: _Task, unique: int, request: bytes, ctx: Context) -> None:
        """Have a task answer a request. From here on it can be interrupted, whether or not the task has begun."""
        ctx.interruption = self._interruptions[unique] = Interruption()
        self._nursery.start_soon(self._attend, task, unique, request, ctx)

    async def _attend(self, task: _Task, unique: int, request: bytes, ctx: Context) -> None:
        try:
            await task(request, ctx)
        finally:
            del self._interruptions[unique]

    async def _later(self, request: bytes, ctx: Context) -> None:
        """Answer a request once that is possible."""
        _, opcode, unique, ino, *_ = wire.HEADER.unpack_from(request)
        body = memoryview(request)[wire.HEADER_SIZE :]
        while True:
            try:
                await self.lane.prepare(opcode, ino, ctx, body)
            except Exception as failure:
                self._fail(opcode, unique, failure)
                return
            if self._handle(self._handlers[opcode], opcode, unique, ino, ctx, body):
                self._tell()
                return

    async def _own(self, request: bytes, ctx: Context) -> None:
        """Answer a request on one of the tree's own directories or files."""
        _, opcode, unique, ino, *_ = wire.HEADER.unpack_from(request)
        try:
            reply = await self.lane.own(opcode, ino, ctx, memoryview(request)[wire.HEADER_SIZE :])
        except Exception as failure:
            self._fail(opcode, unique, failure)
            return
        self.answer(unique, 0, b"" if reply is wire.DONE else reply)

    def _handle(self, handler: Handler, opcode: int, unique: int, ino: int, ctx: Context, body: memoryview) -> bool:
        """Answer a request, or hold the answer back until `_tell`; False when the lane leaves it."""
        try:
            reply = handler(self.lane, unique, ino, ctx, body)
            if reply is None and opcode in PREPARED:
                self._tell()  # who is answered need not wait for this one
                if self.lane.look_at_once(ctx):
                    reply = handler(self.lane, unique, ino, ctx, body)
        except Exception as failure:
            self._fail(opcode, unique, failure)
            return True
        if reply:
            packed = _packed(unique, 0, b"" if reply is wire.DONE else reply)
            # Who is alone asks for nothing else before this is told, and who is awake is told cheaply.
            alone = ctx.pid in (0, self._pid)
            self._pid = ctx.pid or self._pid
            if (alone or self.awake.kept) and not self._held:
                self._send(packed)
                return True
            self._held.append(packed)
            if len(self._held) >= _MOST_HELD:
                self._tell()
        return reply is not None

    def _fail(self, opcode: int, unique: int, failure: Exception) -> None:
        """As `replies.answered` does it for pyfuse3."""
        if isinstance(failure, (OSError, StoreError)):
            number = self.lane.met(failure.errno or errno.EIO)
        elif isinstance(failure, (ZfsfsError, pyfuse3.FUSEError)):
            number = failure.errno
        elif isinstance(failure, MemoryError):
            number = self.lane.met(errno.ENOMEM)
        else:
            number = errno.EIO
            log.error("request %d failed in a way that nobody expected", opcode, exc_info=failure)
        if isinstance(failure, ZfsfsError):
            log.info("request %d: %s", opcode, failure)
        self.answer(unique, number)

    def _take_other(self, opcode: int, unique: int, ino: int, body: memoryview, size: int) -> bool:
        if opcode == wire.FORGET:
            self.lane.forget(ino, *wire.U64.unpack_from(body))
        elif opcode == wire.BATCH_FORGET:
            (count,) = wire.U32.unpack_from(body)
            numbers = bytes(body[8 : 8 + 16 * count])
            if count > _FEW_FORGOTTEN:
                self._nursery.start_soon(self._forget_slowly, numbers)
            else:
                self._forget(numbers)
        elif opcode == wire.INTERRUPT:
            self._interrupt(*wire.U64.unpack_from(body))
        else:
            if opcode == wire.INIT:
                self._greet(unique, body)
            self._pass(size)
            return False
        return True

    def _forget(self, numbers: bytes) -> None:
        for each in wire.FORGET_ONE.iter_unpack(numbers):
            self.lane.forget(*each)

    async def _forget_slowly(self, numbers: bytes) -> None:
        """The kernel gives back up to 65000 inodes in one go: they may be forgotten later, and others are answered
        meanwhile."""
        step = _FEW_FORGOTTEN * wire.FORGET_ONE.size
        for start in range(0, len(numbers), step):
            self._forget(numbers[start : start + step])
            await trio.lowlevel.checkpoint()

    def _interrupt(self, unique: int) -> None:
        """Who waits for the answer to a request has got a signal or is killed, and goes when that is answered; this
        wants no answer. (After ENOSYS the kernel would tell no more, and nobody who waits could be let go.) Mostly
        what was begun is brought to its end all the same; `Caller.interruptible` says what is not."""
        interruption = self._interruptions.get(unique)
        if interruption is not None:
            interruption.come()

    def _greet(self, unique: int, body: memoryview) -> None:
        """Answer INIT: what the kernel may do. libfuse is told of an older kernel, and what it answers is dropped."""
        _, minor, readahead, offered, more = wire.INIT_IN.unpack_from(body)
        self._init_unique = unique
        offered |= more << 32
        flags, depth = offered & _WANTED, 0
        if offered & wire.PASSTHROUGH and self.may_pass:
            # The kernel can't have both. HANDLE_KILLPRIV_V2: it then need not ask for capabilities at each write.
            flags, depth = flags & ~wire.WRITEBACK_CACHE | wire.PASSTHROUGH | wire.HANDLE_KILLPRIV_V2, 1
            self.lane.back(Backings(self._device))
        low, high = flags & 0xFFFFFFFF | wire.INIT_EXT, flags >> 32
        self.answer(
            unique, 0, wire.INIT_OUT.pack(7, min(minor, 40), readahead, low, 64, 48, MOST, 1, 256, 0, high, depth)
        )
        wire.U32.pack_into(body, 4, _INNER_MINOR)

    # pyfuse3's share.

    def _pass(self, size: int) -> None:
        if not self._waiting:
            with contextlib.suppress(BlockingIOError):
                self._outer.send(self._view[:size], socket.MSG_DONTWAIT)
                return
        self._waiting.append(bytes(self._view[:size]))
        self._more.set()

    async def _pass_on(self) -> None:
        """Pass on what the socket had no room for."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            while self._waiting:
                await trio.lowlevel.wait_writable(self._outer)
                with contextlib.suppress(BlockingIOError):
                    self._outer.send(self._waiting[0], socket.MSG_DONTWAIT)
                    self._waiting.popleft()

    def _pass_back(self) -> None:
        """Pass pyfuse3's replies to the kernel, in a thread: pyfuse3 waits in the event loop until they are taken."""
        while reply := self._outer.recv(1 << 19):
            _, number, unique = wire.REPLY.unpack_from(reply)
            if unique == self._init_unique:
                continue
            if unique or number == wire.NOTIFY_POLL:
                self._write(reply)
            else:
                # The kernel may wait for a reply before it takes it.
                threading.Thread(target=self._write, args=(reply,), daemon=True).start()

    def _write(self, reply: bytes) -> None:
        try:
            os.write(self._device, reply)
        except OSError as failure:
            if failure.errno not in _GONE:
                log.exception("the kernel did not take what pyfuse3 says")

    def close(self) -> None:
        """No more requests, no more replies."""
        self._outer.shutdown(socket.SHUT_RDWR)
        if self._pump.is_alive():
            self._pump.join()
        self._outer.close()
        os.close(self._device)
        self.awake.close()
