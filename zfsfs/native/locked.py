"""A mount whose `ro`, `nosuid` and `nodev` stay, whoever gets it.

Who is root of a user namespace of his own clears such flags of what he mounts there, unless they are locked. The
kernel locks them when it copies a mount namespace for a user namespace that may less, and what is cloned of such a
copy keeps the locks (mount_namespaces(7), "Restrictions on mount namespaces"). `lock` has the program of this module
do that: only a process with one thread can.

Guarantees: the program has ended, and its namespaces with it, before `lock` returns; else they would be taken for
somebody who has it mounted. It waits for nobody, so it ends all the same when its daemon has.

Sources: open_tree(2), user_namespaces(7), mount_namespaces(7).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

if __name__ == "__main__":
    # By path and isolated, so the package has to be found by hand.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from zfsfs import syscalls

_MOST = 1024
#: A directory that is always there. Not the root: where that is covered there are no user namespaces.
_PLACE = "/proc"


def lock(mount: int) -> int:
    """A descriptor of a mount like this detached one, with all its flags locked. This one is used up, and stays the
    caller's to close. Blocks. Raises Refused where it can't be done."""
    from zfsfs.errors import Refused
    from zfsfs.native import wire

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with ours:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-I", os.path.abspath(__file__), str(mount)], pass_fds=(mount,), cwd="/",
                    stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )  # fmt: skip
            with process:
                said, ancillary, _, _ = ours.recvmsg(_MOST, wire.ROOM, socket.MSG_CMSG_CLOEXEC)
    except OSError as failure:
        raise Refused(f"the mount can't be made safe to give away: {failure}") from None
    for fd in wire.received(ancillary):
        return fd
    why = said.decode(errors="replace") or f"the program for it has ended with {process.returncode}"
    raise Refused(f"the mount can't be made safe to give away: {why}")


def _locked(mount: int) -> int:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.receive_mounts_only()
    syscalls.move_mount(mount, os.open(_PLACE, os.O_PATH | os.O_DIRECTORY))
    # Of all that we have open, the kernel takes the working directory alone along into the copy. From there on
    # we may not walk any path.
    os.fchdir(mount)
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
    except OSError as failure:
        raise OSError(failure.errno, f"there is no user namespace ({failure.strerror})") from None
    return syscalls.clone_mount()


def _main(mount: int) -> None:
    daemon = socket.socket(fileno=0)
    try:
        fd = _locked(mount)
    except OSError as failure:
        daemon.send(str(failure.strerror).encode())
    else:
        socket.send_fds(daemon, [b"locked"], [fd])


if __name__ == "__main__":
    _main(int(sys.argv[1]))
