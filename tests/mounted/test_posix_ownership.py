"""Who owns what is made, who may change it, and which bits go: as on the filesystem beneath."""

from __future__ import annotations

import os
import stat

from comparing import ANNA, BERT, acting, compared, look, opened, tried, umask, write


@compared()
def test_what_is_made_belongs_to_the_caller():
    for mask in (0o022, 0o077, 0):
        with umask(mask):
            name = f"{mask:o}"
            write(f"f{name}")
            yield look(f"f{name}")
            os.mkdir(f"d{name}", 0o777)
            yield look(f"d{name}")
            os.mkfifo(f"p{name}", 0o660)
            yield look(f"p{name}")
            os.symlink("f", f"l{name}")
            yield look(f"l{name}")
            os.mknod(f"s{name}", stat.S_IFSOCK | 0o666)
            yield look(f"s{name}")
            os.mknod(f"r{name}", stat.S_IFREG | 0o640)
            yield look(f"r{name}")


@compared()
def test_special_bits_asked_for_when_a_thing_is_made():
    with umask(0):
        for mode in (0o4755, 0o2755, 0o6777, 0o1777, 0o7000, 0, 0o2644, 0o2711):
            os.mkdir(f"d{mode:o}", mode)
            yield look(f"d{mode:o}")
            write(f"f{mode:o}", mode=mode)
            yield look(f"f{mode:o}")
            os.mknod(f"n{mode:o}", stat.S_IFREG | mode)
            yield look(f"n{mode:o}")
            os.mkfifo(f"p{mode:o}", mode)
            yield look(f"p{mode:o}")


@compared("root")
def test_a_set_gid_directory_gives_its_group():
    os.mkdir("d")
    os.chown("d", ANNA.uid, 777)
    os.chmod("d", 0o2777)
    os.mkdir("mine")
    os.chown("mine", ANNA.uid, 3456)
    os.chmod("mine", 0o2777)
    for user in (ANNA, BERT):
        with acting(user), umask(0):
            for folder in ("d", "mine"):
                for mode in (0o666, 0o2755, 0o6777):
                    name = f"{folder}/{user.uid}-{mode:o}"
                    write(f"{name}f", mode=mode)
                    yield look(f"{name}f")
                    os.mkdir(f"{name}d", mode)
                    yield look(f"{name}d")
                    os.mkfifo(f"{name}p", mode)
                    yield look(f"{name}p")
                os.symlink("x", f"{folder}/l{user.uid}")
                yield look(f"{folder}/l{user.uid}")


@compared("root")
def test_who_may_chmod():
    for owner, group in ((ANNA.uid, ANNA.gid), (ANNA.uid, 777), (ANNA.uid, 3456), (0, ANNA.gid)):
        name = f"{owner}-{group}"
        write(name)
        os.mkdir(f"{name}d")
        for each in (name, f"{name}d"):
            os.chown(each, owner, group)
            for user in (ANNA, BERT):
                with acting(user):
                    for mode in (0o600, 0o4755, 0o2755, 0o2644, 0o6777, 0o1777, 0o7777):
                        yield tried(os.chmod, each, mode), look(each)


@compared("root")
def test_who_may_chown_and_which_bits_it_clears():
    for mode in (0o6755, 0o4600, 0o7777, 0o2711, 0o755):
        for kind in "fp":
            name = f"{kind}{mode:o}"
            {"f": write, "p": os.mkfifo}[kind](name)
            os.chown(name, ANNA.uid, ANNA.gid)
            for user in (ANNA, BERT):
                for uid, gid in ((-1, -1), (-1, ANNA.gid), (-1, 3456), (-1, 777), (BERT.uid, -1), (ANNA.uid, 3456)):
                    os.chown(name, ANNA.uid, ANNA.gid)
                    os.chmod(name, mode)
                    with acting(user):
                        yield name, user.uid, uid, gid, tried(os.chown, name, uid, gid), look(name)
            for uid, gid in ((-1, -1), (5, -1), (-1, 6), (5, 6)):
                os.chmod(name, mode)
                yield name, uid, gid, tried(os.chown, name, uid, gid), look(name)


@compared("root")
def test_links_are_owned_by_themselves():
    write("f")
    os.symlink("f", "l")
    yield tried(os.lchown, "l", 5, 6), look("l"), look("f")
    yield tried(os.chown, "l", 7, 8), look("l"), look("f")
    os.lchown("l", ANNA.uid, ANNA.gid)
    with acting(ANNA):
        yield tried(os.lchown, "l", -1, 3456), look("l")
        yield tried(os.lchown, "l", -1, 777), look("l")
        yield tried(os.lchown, "l", 0, -1), look("l")


def _written(name: str) -> None:
    with opened(name, os.O_WRONLY) as fd:
        os.write(fd, b"x")


def _written_late(name: str) -> None:
    with opened(name, os.O_RDWR) as fd:
        os.pwrite(fd, b"x", 100)
        os.fsync(fd)


def _emptied(name: str) -> None:
    os.close(os.open(name, os.O_WRONLY | os.O_TRUNC))


def _cut(name: str) -> None:
    os.truncate(name, 1)


def _grown(name: str) -> None:
    with opened(name, os.O_WRONLY) as fd:
        os.ftruncate(fd, 50)


@compared("root")
def test_set_uid_goes_when_the_file_is_written():
    for change in (_written, _written_late, _emptied, _cut, _grown):
        for mode in (0o6777, 0o4777, 0o2777, 0o1777):
            for user in (ANNA, BERT):
                name = f"{change.__name__}-{mode:o}-{user.uid}"
                write(name, b"contents")
                os.chown(name, ANNA.uid, ANNA.gid)
                os.chmod(name, mode)
                look(name)
                with acting(user):
                    yield name, tried(change, name), look(name)
        name = f"{change.__name__}-root"
        write(name, b"contents")
        os.chmod(name, 0o6777)
        yield name, tried(change, name), look(name)


@compared("root")
def test_a_sticky_directory_keeps_others_out():
    for owner in (0, ANNA.uid, BERT.uid):
        folder = f"d{owner}"
        os.mkdir(folder)
        os.chown(folder, owner, 0)
        os.chmod(folder, 0o1777)
        for file_owner in (0, ANNA.uid, BERT.uid):
            for kind in "fd":
                name = f"{folder}/{kind}{file_owner}"
                {"f": write, "d": os.mkdir}[kind](name)
                os.chown(name, file_owner, file_owner)
                with acting(ANNA):
                    yield name, tried(os.rename, name, f"{name}-new"), tried(os.rename, f"{name}-new", name)
                    write(f"{folder}/mine")
                    yield name, tried(os.rename, f"{folder}/mine", name)
                    yield tried(os.unlink, f"{folder}/mine")
                    yield name, tried(os.unlink if kind == "f" else os.rmdir, name)


@compared("root")
def test_permissions_are_those_of_owner_group_and_others():
    for mode in (0o400, 0o200, 0o100, 0o040, 0o020, 0o010, 0o004, 0o002, 0o001, 0o777, 0):
        for owner, group in ((ANNA.uid, 777), (0, ANNA.gid), (0, 3456), (0, 777)):
            name = f"{mode:o}-{owner}-{group}"
            write(f"f{name}", b"#!/bin/sh\n")
            os.mkdir(f"d{name}")
            write(f"d{name}/f")
            for each in (f"f{name}", f"d{name}"):
                os.chown(each, owner, group)
                os.chmod(each, mode)
            with acting(ANNA):
                for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
                    fd = tried(os.open, f"f{name}", flags)
                    yield name, flags, isinstance(fd, int) or fd
                    if isinstance(fd, int):
                        os.close(fd)
                for wanted in (os.R_OK, os.W_OK, os.X_OK):
                    yield os.access(f"f{name}", wanted), os.access(f"d{name}", wanted)
                yield tried(os.listdir, f"d{name}"), tried(os.stat, f"d{name}/f") == "EACCES"
                yield tried(write, f"d{name}/new"), tried(os.unlink, f"d{name}/f")
                yield tried(os.mkdir, f"d{name}/newdir"), tried(os.truncate, f"f{name}", 0)


@compared("root")
def test_who_may_set_times():
    for mode in (0o600, 0o666, 0o444):
        name = f"{mode:o}"
        write(name)
        os.chown(name, ANNA.uid, ANNA.gid)
        os.chmod(name, mode)
        for user in (ANNA, BERT):
            with acting(user):
                yield user.uid, mode, tried(os.utime, name), tried(os.utime, name, (1, 1))


@compared("root")
def test_a_user_s_supplementary_groups_count():
    os.mkdir("d")
    os.chown("d", 0, 3456)
    os.chmod("d", 0o770)
    with acting(ANNA):
        write("d/f", b"x")
        os.mkdir("d/e")
        yield look("d/f"), look("d/e")
        yield tried(os.chown, "d/f", -1, 3456), look("d/f")
        yield tried(os.link, "d/f", "d/g"), tried(os.rename, "d/g", "d/e/h"), tried(os.unlink, "d/f")
    with acting(BERT):
        yield tried(write, "d/x"), tried(os.listdir, "d")


@compared("root")
def test_device_nodes_are_made_but_by_root_only():
    yield tried(os.mknod, "c", stat.S_IFCHR | 0o666, os.makedev(1, 3)), look("c")
    yield tried(os.mknod, "b", stat.S_IFBLK | 0o660, os.makedev(300, 70000)), look("b")
    with acting(ANNA):
        yield tried(os.mknod, "x", stat.S_IFCHR | 0o666, os.makedev(1, 3)), look("x")
