"""The daemon's socket: whatever comes in, the daemon stays, and says what was wrong."""

from __future__ import annotations

import array
import json
import os
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mounted_tree import until

from zfsfs.native.client import socket_of

#: An ordinary user.
UID = 12345
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")


@pytest.fixture
def path(tree):
    return socket_of(str(tree.path))


def talk(path, data, descriptors=(), user=None):
    """Send one packet; returns the answer, None when it was hung up on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        with being(user):
            sock.connect(path)  # not with a timeout: then it fails where others have not been accepted yet
        sock.settimeout(30)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        sock.sendmsg([data], rights)
        answer, ancillary, _, _ = sock.recvmsg(65536, socket.CMSG_SPACE(256))
        for _, _, given_fds in ancillary:
            for fd in array.array("i", given_fds):
                os.close(fd)
        return json.loads(answer) if answer else None


def test_it_is_there_while_the_tree_is_mounted_and_no_longer(tree, path):
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    assert os.stat(os.path.dirname(path)).st_mode & 0o022 == 0
    tree.umount()
    assert not os.path.exists(path)
    tree.mount()


def test_what_a_killed_daemon_has_left_is_swept_by_the_next(tree, path):
    pidfd = os.pidfd_open(tree.pid)
    os.kill(tree.pid, 9)
    import select

    select.select([pidfd], [], [])
    os.close(pidfd)
    assert os.path.exists(path)
    tree.mount()
    assert not os.path.exists(path)
    assert os.path.exists(socket_of(str(tree.path)))


verbs = st.sampled_from(["hold", "attached", "whose", "look", "", "x", None, 1, [], {}])
requests = st.one_of(
    st.binary(max_size=200),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
    .map(json.dumps)
    .map(str.encode),
    st.builds(
        lambda verb, read_only, mapped: json.dumps({"verb": verb, "read_only": read_only, "mapped": mapped}).encode(),
        verbs, st.none() | st.booleans() | st.text(), st.none() | st.booleans(),
    ),
)  # fmt: skip
things = st.lists(
    st.sampled_from(["root", "builds", "file", "sub", "build", "path", "pipe", "null", "etc"]), max_size=4
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=requests, sent=things)
def test_anything_is_answered_and_nothing_stays_held(tree, path, data, sent):
    build = tree / "builds/b"
    (build / "sub").mkdir(parents=True)
    (build / "file").touch()
    places = {
        "root": tree.path, "builds": tree / "builds", "sub": build / "sub", "build": build, "file": build / "file",
        "null": "/dev/null", "etc": "/etc",
    }  # fmt: skip
    opened = []
    for each in sent:
        if each == "pipe":
            opened += os.pipe()
        elif each == "path":
            opened.append(os.open(build, os.O_PATH))
        else:
            opened.append(os.open(places[each], os.O_RDONLY))
    try:
        answer = talk(path, data, opened)
    finally:
        for fd in opened:
            os.close(fd)
    if answer is not None and "error" in answer:
        assert answer["error"]
        assert "\n" not in answer["error"]
        assert answer["errno"] > 0
    until(lambda: not tree.status()["native"])
    (build / "file").write_text("it can be changed")
    build.rmdir()


def test_what_is_too_long_is_refused(tree, path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(path)
        sock.send(b"[" * 100_000)
        assert "too long" in sock.recv(65536).decode()
        sock.send(b"[" * 60_000)
        assert "no JSON" in sock.recv(65536).decode()


@root_only
def test_many_silent_connections_shut_nobody_out_but_their_own_user(tree, path):
    with silent(path, 80, UID) as connections:
        until(lambda: any(readable(sock) for sock in connections))
        said = [sock.recv(65536).decode() for sock in connections if readable(sock)]
        assert all("too many" in each for each in said)
        assert talk(path, b'{"verb": "look"}') == {}
    until(lambda: talk(path, b'{"verb": "look"}', user=UID) == {})


def test_the_daemons_own_user_is_never_shut_out(tree, path):
    """Builders come as root, whoever has begun them."""
    with silent(path, 80) as connections:
        assert talk(path, b'{"verb": "look"}') == {}
        assert not any(readable(sock) for sock in connections)


def test_an_open_file_keeps_only_those_waiting_who_want_its_build(unmounted, tmp_path):
    tree = unmounted
    tree.mount_changed("patient", tmp_path)
    path = socket_of(str(tree.path))
    builds = [tree / "builds/kept", tree / "builds/free"]
    for each in builds:
        each.mkdir()
    kept, free = [os.open(each, os.O_RDONLY) for each in builds]
    hold = b'{"verb": "hold"}'
    with (builds[0] / "file").open("x") as file, silent(path, 40) as waiting, silent(path, 1) as idle:
        for sock in waiting:
            sock.sendmsg([hold], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [kept]))])
        assert "mounts" in talk(path, hold, [free])
        # Who says nothing is hung up on, in this time, and who waits for an answer is not.
        until(lambda: readable(idle[0]) and not idle[0].recv(1))
        assert not any(readable(sock) for sock in waiting)
        file.close()
        for sock in waiting:
            until(lambda sock=sock: readable(sock))
            answer, ancillary, _, _ = sock.recvmsg(65536, socket.CMSG_SPACE(256))
            os.close(array.array("i", ancillary[0][2])[0])
            assert "mounts" in json.loads(answer)
    os.close(kept)
    os.close(free)
    until(lambda: not tree.status()["native"])
    for each in builds:
        each.rmdir()


@contextmanager
def natively(path, folder):
    """A directory of the tree as it is natively, while it is held."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(path)
        fd = os.open(folder, os.O_RDONLY)
        socket.send_fds(sock, [b'{"verb": "hold"}'], [fd])
        os.close(fd)
        _, (mount,), _, _ = socket.recv_fds(sock, 4096, 1)
        native = os.open(".", os.O_RDONLY, dir_fd=mount)
        os.close(mount)
        yield native
        os.close(native)


#: Asks for a directory that is native, as an ordinary user, and says that it is mounted; then lives on.
LIVING = """
import os, socket, sys
native = int(sys.argv[2])
os.setresuid(12345, 12345, 12345)
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
    sock.connect(sys.argv[1])
    for _ in range(100):
        socket.send_fds(sock, [b'{"verb": "hold"}'], [native])
        said = sock.recv(4096)
    sock.send(b'{"verb": "attached"}')
    sock.recv(4096)
os.close(native)
print(said.decode(), flush=True)
sys.stdin.read()
"""


@root_only
def test_who_asks_for_what_is_native_already_holds_nothing_by_that(tree, path):
    """Anybody can ask who can open it, a bind mount for instance."""
    (tree / "builds/b").mkdir()
    with natively(path, tree / "builds/b") as native:
        command = [sys.executable, "-c", LIVING, path, str(native)]
        user = subprocess.Popen(command, stdin=-1, stdout=-1, pass_fds=[native])
        assert user.stdout is not None
        assert b"already" in user.stdout.readline()
    try:
        until(lambda: not tree.status()["native"])
    finally:
        user.kill()
        user.communicate()
    (tree / "builds/b").rmdir()


#: A filesystem of one file, which is never done with being closed.
NEVER_CLOSED = """
import os, stat, sys
import pyfuse3, trio

class Operations(pyfuse3.Operations):
    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode = inode, 0o777 | (stat.S_IFDIR if inode == 1 else stat.S_IFREG)
        return entry

    async def lookup(self, parent, name, ctx=None):
        return await self.getattr(2)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=2)

    async def flush(self, fh):
        await trio.sleep_forever()

pyfuse3.init(Operations(), sys.argv[1], {"fsname=never-closed"})
print("mounted", flush=True)
trio.run(pyfuse3.main)
"""


#: Sends a file of it on many connections. A process of its own, for it can't close the file either.
SENDING = """
import os, socket, sys
socks = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(60)]
file = os.open(sys.argv[2], os.O_RDONLY)
for sock in socks:
    sock.connect(sys.argv[1])
    socket.send_fds(sock, [b"{}"], [file])
for sock in socks:
    sock.recv(4096)
print("answered", flush=True)
sys.stdin.read()
"""


@root_only
def test_descriptors_that_can_not_be_closed_delay_only_who_has_sent_them(tree, path, tmp_path):
    (tmp_path / "mnt").mkdir()
    file = tmp_path / "mnt/file"
    with process(NEVER_CLOSED, file.parent) as server, process(SENDING, path, file) as sender:
        # They are closed after the answer.
        until(lambda: len(os.listdir(f"/proc/{tree.pid}/task")) > 40)
        made = subprocess.Popen(["mkdir", tree / "builds/b"])
        try:
            assert made.wait(30) == 0
        finally:
            sender.kill()  # it ends when the files are closed
            server.kill()
            made.wait()
            subprocess.run(["umount", "-l", file.parent], check=True)
    (tree / "builds/b").rmdir()


@contextmanager
def process(code, *words):
    """A program that says when it is ready."""
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline()
        yield running


@contextmanager
def silent(path, count, user=None):
    """Connections on which nothing is said."""
    with ExitStack() as stack:
        made = [stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) for _ in range(count)]
        with being(user):
            for sock in made:
                sock.connect(path)
        for sock in made:
            sock.setblocking(False)
        yield made


@contextmanager
def being(user):
    """Connect as another user: the kernel tells the daemon who it was then."""
    before = os.geteuid()
    os.seteuid(before if user is None else user)
    try:
        yield
    finally:
        os.seteuid(before)


def readable(sock):
    try:
        sock.recv(1, socket.MSG_PEEK)
        return True
    except BlockingIOError:
        return False
