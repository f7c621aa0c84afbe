"""mkdir in builds/: a part of the tree."""

from __future__ import annotations

import errno
import os
import stat
from time import monotonic
from typing import TYPE_CHECKING

import trio

from zfsfs.errors import Missing, Refused, ZfsfsError
from zfsfs.fs.area import Area
from zfsfs.fs.caller import Caller
from zfsfs.fs.insisting import insist
from zfsfs.fs.nodes import NEVER
from zfsfs.fs.permission import READ, permits
from zfsfs.fs.places import BuildPlace
from zfsfs.names import BuildName
from zfsfs.store.arriving import Arrive
from zfsfs.store.views import close_view

if TYPE_CHECKING:
    from zfsfs.fs.tree import Tree


async def start_build(tree: Tree, build: BuildName, mode: int, caller: Caller, arrive: Arrive) -> Area:
    """See `Tree.mkdir`. Raises Refused (EACCES: the base may not be read), and what `Builds.begin` does."""
    builds = tree.store.builds
    if build.base is not None and builds.result(build.base) is not None:
        base = tree.result(build.base)
        if base.view is None:
            await tree.ready(base)
        if not permits(base.fd, READ, caller.uid, caller.groups()):
            raise Refused(f"user {caller.uid} may not read the result {build.base}", errno.EACCES)
    user = caller
    if build.builder:
        if tree.builders is None:
            raise Missing(f"there is no builder {build.builder}")
        user = tree.builders.user(build.builder, caller)
    info, view = await builds.begin(build, (user.uid, user.gid), mode)
    area = Area(tree.table, BuildPlace(build, info.created, caller.uid))
    area.attach(view)
    area.root.warm = NEVER if build.base else monotonic()

    def say(why: Exception) -> None:
        text = f"build {build.id}, which could not be started, can't be discarded yet: {why}"
        tree.store.events.append("warning", str(build.id), text)

    try:
        _give_root(view.fd, user)
        guid = await builds.guid(build.id) if build.builder else 0
        await arrive()
    except BaseException:
        await close_view(area.detach())
        with trio.CancelScope(shield=True):
            try:
                await builds.discard(build.id)
            except (ZfsfsError, OSError):
                # Its id is taken until that is done.
                tree.sessions.nursery.start_soon(insist, lambda: builds.discard(build.id), say)
        raise
    tree.table.hold(area.root)
    tree.builds[build.id] = area
    if tree.builders is not None and build.builder:
        tree.builders.begin(area, build.builder, user, caller, guid)
    return area


def _give_root(fd: int, caller: Caller) -> None:
    """A build on another's result belongs to who started it, or only the other could publish or remove it."""
    root = os.fstat(fd)
    if caller.uid and root.st_uid != caller.uid:
        os.fchown(fd, caller.uid, -1)
        os.fchmod(fd, stat.S_IMODE(root.st_mode))  # chown has cleared set-uid and set-gid
