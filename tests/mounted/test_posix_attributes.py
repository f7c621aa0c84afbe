"""Extended attributes and access control lists: as the filesystem beneath gives them."""

from __future__ import annotations

import os
import stat
import struct
import subprocess

from comparing import (
    ACCESS,
    ANNA,
    BERT,
    DEFAULT,
    acl,
    acting,
    compared,
    look,
    moved,
    opened,
    read,
    tried,
    umask,
    write,
)

#: Tags of access control lists, see acl(5) and linux/posix_acl_xattr.h.
OWNER, USER, GROUP_OF_FILE, GROUP, MASK, OTHERS = 1, 2, 4, 8, 16, 32


def getfacl(name: str) -> str:
    """The list as a person sees it."""
    done = subprocess.run(["getfacl", "-n", "-c", "-p", "-E", name], capture_output=True, text=True, check=False)
    return done.stdout or done.stderr


@compared()
def test_attributes_of_every_namespace():
    write("f")
    os.mkdir("d")
    os.symlink("f", "l")
    os.mkfifo("p")
    for name in "fdlp":
        for attribute in ("user.x", "trusted.x", "security.x", "system.x", "nothing.x", "x", "user.",
                          "user." + "n" * 249, "user." + "n" * 250, "user.\u00e4 \n"):  # fmt: skip
            yield name, attribute, tried(os.setxattr, name, attribute, b"value", follow_symlinks=False)
            yield tried(os.getxattr, name, attribute, follow_symlinks=False)
        yield sorted(os.listxattr(name, follow_symlinks=False))
        for attribute in ("user.x", "trusted.x", "security.x", "missing.x", "user.missing"):
            yield name, attribute, tried(os.removexattr, name, attribute, follow_symlinks=False)
        yield sorted(os.listxattr(name, follow_symlinks=False))


@compared()
def test_attributes_are_created_or_replaced():
    write("f")
    yield (
        tried(os.setxattr, "f", "user.x", b"1", os.XATTR_REPLACE),
        tried(os.setxattr, "f", "user.x", b"2", os.XATTR_CREATE),
    )
    yield (
        tried(os.setxattr, "f", "user.x", b"3", os.XATTR_CREATE),
        tried(os.setxattr, "f", "user.x", b"4", os.XATTR_REPLACE),
    )
    yield tried(os.getxattr, "f", "user.x"), tried(os.setxattr, "f", "user.x", b""), tried(os.getxattr, "f", "user.x")
    yield (
        tried(os.removexattr, "f", "user.x"),
        tried(os.removexattr, "f", "user.x"),
        tried(os.getxattr, "f", "user.x"),
    )
    with opened("f", os.O_RDONLY) as fd:
        yield tried(os.setxattr, fd, "user.y", b"1"), tried(os.getxattr, fd, "user.y"), os.listxattr(fd)


@compared()
def test_attributes_of_every_size():
    for size in (0, 1, 100, 1000, 2000, 3000, 4096, 8192, 32_768, 65_535, 65_536, 65_537):
        name = f"f{size}"
        write(name)
        yield size, tried(os.setxattr, name, "user.x", b"v" * size), tried(os.getxattr, name, "user.x")
    write("many")
    for number in range(30):
        yield tried(os.setxattr, "many", f"user.{number}", bytes([number]) * 20)
    yield sorted(os.listxattr("many"))


@compared("root")
def test_who_may_read_and_write_attributes():
    write("f", mode=0o600)
    os.setxattr("f", "user.x", b"mine")
    os.setxattr("f", "trusted.x", b"root's")
    os.setxattr("f", "security.x", b"anybody's")
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    for mode in (0o600, 0o644, 0o666):
        os.chmod("f", mode)
        with acting(ANNA):
            for name in ("user.x", "trusted.x", "security.x"):
                yield mode, name, tried(os.getxattr, "f", name), tried(os.setxattr, "f", name, b"new")
            yield sorted(os.listxattr("f")), tried(os.setxattr, "sticky", "user.x", b"1")
    with acting(ANNA):
        yield tried(os.setxattr, "f", ACCESS, acl((OWNER, 7), (GROUP_OF_FILE, 7), (OTHERS, 7))), look("f")


@compared()
def test_lists_that_are_modes():
    write("f", mode=0o640)
    yield (
        tried(os.getxattr, "f", ACCESS),
        tried(os.setxattr, "f", ACCESS, acl((OWNER, 7), (GROUP_OF_FILE, 5), (OTHERS, 1))),
    )
    yield look("f"), tried(os.getxattr, "f", ACCESS), os.listxattr("f"), getfacl("f")


@compared()
def test_lists_with_more_than_a_mode():
    write("f", mode=0o640)
    os.mkdir("d")
    full = acl((OWNER, 6), (USER, 7, 4321), (GROUP_OF_FILE, 4), (GROUP, 2, 77), (MASK, 5), (OTHERS, 0))
    for name in "fd":
        yield tried(os.setxattr, name, ACCESS, full), look(name), getfacl(name), os.getxattr(name, ACCESS) == full
        os.chmod(name, 0o770)
        yield look(name), getfacl(name)
        os.chmod(name, 0o4701)
        yield look(name), getfacl(name)
        yield tried(os.setxattr, name, DEFAULT, full), getfacl(name), sorted(os.listxattr(name))
        yield tried(os.removexattr, name, ACCESS), look(name), getfacl(name)
        yield tried(os.removexattr, name, DEFAULT), getfacl(name), tried(os.removexattr, name, DEFAULT)
    for wrong in (b"", b"x", acl((OWNER, 7)), acl((OWNER, 9), (GROUP_OF_FILE, 7), (OTHERS, 7)),
                  acl((OWNER, 7), (USER, 7, 1), (GROUP_OF_FILE, 7), (OTHERS, 7)),
                  acl((OTHERS, 7), (OWNER, 7), (GROUP_OF_FILE, 7))):  # fmt: skip
        yield tried(os.setxattr, "f", ACCESS, wrong), tried(os.setxattr, "d", DEFAULT, wrong), look("f")


@compared("root")
def test_lists_decide_who_may_what():
    write("f", b"x", 0o600)
    os.mkdir("d")
    for permissions in range(8):
        entries = (
            (OWNER, 7),
            (USER, permissions, ANNA.uid),
            (GROUP_OF_FILE, 0),
            (GROUP, permissions, 5432),
            (MASK, 7),
            (OTHERS, 0),
        )
        for mask in (7, 4):
            masked = acl(*[(MASK, mask) if each[0] == MASK else each for each in entries])
            os.setxattr("f", ACCESS, masked)
            os.setxattr("d", ACCESS, masked)
            for user in (ANNA, BERT):
                with acting(user):
                    yield permissions, mask, user.uid, [os.access("f", mode) for mode in (4, 2, 1)]
                    yield tried(read, "f"), tried(os.truncate, "f", 1), tried(os.listdir, "d"), tried(write, "d/new")
            tried(os.unlink, "d/new")


@compared("root")
def test_a_list_set_by_who_is_not_in_the_group_clears_set_gid():
    if "ZFSFS_TEST_POOL" in os.environ:
        return  # ZFS leaves the bit, alone among filesystems; through us it goes there, too
    for user in (ANNA, BERT):
        name = f"f{user.uid}"
        write(name)
        os.chown(name, user.uid, ANNA.gid)
        os.chmod(name, 0o2755)
        with acting(user):
            yield tried(os.setxattr, name, ACCESS, acl((OWNER, 7), (GROUP_OF_FILE, 5), (OTHERS, 5))), look(name)
    for group in (3456, 777):
        os.mkdir(f"d{group}")
        os.chown(f"d{group}", ANNA.uid, group)
        os.chmod(f"d{group}", 0o2755)
        with acting(ANNA):
            full = acl((OWNER, 7), (USER, 7, 1), (GROUP_OF_FILE, 5), (MASK, 7), (OTHERS, 5))
            yield tried(os.setxattr, f"d{group}", ACCESS, full), look(f"d{group}")


@compared()
def test_times_that_move():
    write("f")
    os.mkdir("d")
    full = acl((OWNER, 7), (USER, 7, 1), (GROUP_OF_FILE, 5), (MASK, 7), (OTHERS, 5))
    for name in "fd":
        yield moved([name], os.setxattr, name, "user.x", b"1"), moved([name], os.removexattr, name, "user.x")
        yield moved([name], os.setxattr, name, ACCESS, full), moved([name], os.getxattr, name, ACCESS)
        yield moved([name], os.removexattr, name, "user.missing")


@compared()
def test_what_is_made_after_a_time_was_set_to_now_is_not_older():
    for number in range(20):
        write("f", b"x")
        os.utime("f")
        os.mkdir(f"d{number}")
        yield os.stat("f").st_mtime_ns <= os.stat(f"d{number}").st_mtime_ns


@compared("root")
def test_capabilities_of_files_go_when_they_are_written():
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    write("f", b"x", 0o777)
    os.chown("f", ANNA.uid, ANNA.gid)
    yield tried(os.setxattr, "f", "security.capability", capability), tried(os.getxattr, "f", "security.capability")
    with acting(ANNA):
        write("f", b"changed")
    yield tried(os.getxattr, "f", "security.capability")
    os.setxattr("f", "security.capability", capability)
    os.chown("f", BERT.uid, -1)
    yield tried(os.getxattr, "f", "security.capability")
    os.setxattr("f", "security.capability", capability)
    os.truncate("f", 0)
    yield tried(os.getxattr, "f", "security.capability")


@compared()
def test_files_without_a_name_keep_their_attributes():
    write("f")
    os.setxattr("f", "user.x", b"1")
    os.link("f", "g")
    with opened("f", os.O_RDWR) as fd:
        os.unlink("f")
        yield (
            tried(os.getxattr, "g", "user.x"),
            tried(os.setxattr, "g", "user.y", b"2"),
            tried(os.getxattr, fd, "user.y"),
        )
        os.unlink("g")
        yield tried(os.getxattr, fd, "user.x"), tried(os.setxattr, fd, "user.z", b"3"), sorted(os.listxattr(fd))


@compared()
def test_defaults_are_inherited_and_the_umask_then_counts_for_nothing():
    for number, default in enumerate((
        acl((OWNER, 7), (GROUP_OF_FILE, 7), (OTHERS, 7)),
        acl((OWNER, 7), (GROUP_OF_FILE, 5), (OTHERS, 0)),
        acl((OWNER, 7), (USER, 6, 4321), (GROUP_OF_FILE, 5), (MASK, 7), (OTHERS, 4)),
    )):  # fmt: skip
        folder = f"d{number}"
        os.mkdir(folder)
        os.setxattr(folder, DEFAULT, default)
        for mask in (0o022, 0o077, 0):
            with umask(mask):
                name = f"{folder}/{mask:o}"
                write(f"{name}f")
                os.mkdir(f"{name}d")
                os.mkdir(f"{name}d/in")
                os.mkfifo(f"{name}p", 0o644)
                os.symlink("x", f"{name}l")
                os.mknod(f"{name}n", stat.S_IFREG | 0o640)
                os.mkdir(f"{name}s", 0o1750)
            for each in ("f", "d", "d/in", "p", "l", "n", "s"):
                yield each, look(name + each), each != "l" and getfacl(name + each)


@compared("root")
def test_defaults_restrict_what_is_made_with_set_id_bits():
    os.mkdir("d")
    os.chmod("d", 0o777)
    os.setxattr("d", DEFAULT, acl((OWNER, 6), (GROUP_OF_FILE, 4), (OTHERS, 0)))
    with acting(ANNA), opened("d/f", os.O_CREAT | os.O_RDWR, 0o6777):
        os.mknod("d/n", stat.S_IFREG | 0o6777)
    for name in ("d/f", "d/n"):
        yield look(name), getfacl(name)


@compared("root")
def test_defaults_are_inherited_by_what_others_make():
    os.mkdir("d")
    os.chmod("d", 0o2777)
    os.setxattr("d", DEFAULT, acl((OWNER, 7), (USER, 7, 4321), (GROUP_OF_FILE, 7), (MASK, 7), (OTHERS, 0)))
    os.chown("d", 0, 777)
    with acting(ANNA), umask(0o077):
        write("d/f", b"x")
        os.mkdir("d/e")
        os.mkfifo("d/p")
        for name in ("d/f", "d/e", "d/p"):
            yield look(name), getfacl(name)
    with acting(BERT):
        yield tried(read, "d/f"), tried(write, "d/e/f", b"y"), tried(read, "d/e/f")


@compared()
def test_a_default_list_counts_from_when_it_is_set_to_when_it_goes():
    os.mkdir("d")
    with umask(0o077):
        write("d/before")
        os.setxattr("d", DEFAULT, acl((OWNER, 7), (GROUP_OF_FILE, 7), (OTHERS, 7)))
        write("d/within")
        os.mkdir("d/sub")
        write("d/sub/within")
        os.removexattr("d", DEFAULT)
        write("d/after")
        write("d/sub/after")
    for name in ("before", "within", "after", "sub/within", "sub/after"):
        yield name, look(f"d/{name}")
