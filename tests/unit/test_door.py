"""The socket of a daemon among those of others."""

from __future__ import annotations

import os
import socket

from zfsfs.fs import door


def test_daemons_that_start_at_the_same_time_leave_each_other_their_sockets(tmp_path, monkeypatch):
    monkeypatch.setattr(door.wire, "folder", lambda: str(tmp_path))
    chmod, others = os.chmod, []

    def meanwhile(path: str, mode: int) -> None:
        if not others:
            others.append(door.opened())
            others[0].__enter__()
        chmod(path, mode)

    monkeypatch.setattr(os, "chmod", meanwhile)
    with door.opened() as listening, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(listening.path)
        others[0].__exit__(None, None, None)
        assert os.listdir(tmp_path) == [os.path.basename(listening.path)]
    assert os.listdir(tmp_path) == []
