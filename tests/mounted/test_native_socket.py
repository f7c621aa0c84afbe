"""The daemon's socket: whatever comes in, the daemon stays, and says what was wrong."""

from __future__ import annotations

import array
import json
import os
import socket
import stat

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mounted_tree import until

from zfsfs.native.client import socket_of


@pytest.fixture
def path(tree):
    return socket_of(str(tree.path))


def talk(path, data, descriptors=()):
    """Send one packet; returns the answer, None when it was hung up on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(30)
        sock.connect(path)
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


def test_many_silent_connections_shut_nobody_out_but_their_own_user(tree, path):
    silent = []
    for _ in range(80):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(path)
        silent.append(sock)
    assert any("too many" in talked for talked in refused(silent))
    for sock in silent:
        sock.close()
    until(lambda: talk(path, b'{"verb": "look"}') == {})


def refused(silent):
    for sock in silent:
        sock.setblocking(False)
    until(lambda: any(readable(sock) for sock in silent))
    return [sock.recv(65536).decode() for sock in silent if readable(sock)]


def readable(sock):
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
