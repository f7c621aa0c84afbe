"""What is changed natively is right through the tree, meanwhile and afterwards; what is changed through the tree is
right natively."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys

import pytest
from errnos import failing
from mapping import mapped
from mounted_tree import held, until


class Shell:
    """A shell in `zfsfs exec`, with the path as its working directory."""

    def __init__(self, tree, path):
        self.tree = tree
        command = [sys.executable, "-m", "zfsfs", "exec", "--cwd", path, path, "--", "sh"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        self("true")

    def __call__(self, script):
        """Run it; returns what it says, when it has."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{script}\nprintf '\\n=done %s\\n' $?\n")
        lines = []
        while not (line := self.process.stdout.readline()).startswith("=done"):
            assert line, "".join(lines)
            lines.append(line)
        assert line == "=done 0\n", "".join(lines)
        return "".join(lines).removesuffix("\n")

    def end(self):
        if self.process.poll() is None:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
        until(lambda: not self.tree.status()["native"])


@pytest.fixture(params=["caches/x@label"])
def place(request, tree):
    """A build or session with some files that the kernel knows well."""
    name = request.param
    (tree / name.partition("@")[0]).mkdir()
    folder = tree / name
    keep = os.open(folder, os.O_RDONLY) if name.startswith("caches") else -1
    fill(folder)
    look(folder)
    yield folder
    if keep >= 0:
        os.close(keep)
    else:
        subprocess.run(["rm", "-rf", folder], check=True)


def fill(folder):
    (folder / "file").write_text("0123456789")
    (folder / "other").write_text("other")
    (folder / "dir/sub").mkdir(parents=True)
    (folder / "dir/inner").write_text("inner")
    (folder / "link").symlink_to("file")


@pytest.fixture
def shell(tree, place):
    shell = Shell(tree, place)
    yield shell
    shell.end()


@pytest.fixture(params=["while it is native", "afterwards"])
def then(request, shell):
    """When the tree is looked at."""
    return shell.end if request.param == "afterwards" else lambda: None


def look(folder):
    """Everything that there is: kinds, sizes, contents, links and attributes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        st = path.lstat()
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = sorted(os.listdir(path))
        else:
            found[name] = (st.st_size, path.read_bytes(), os.listxattr(path))
    for missing in ("new", "moved", "dir/new", "dir/sub/new"):
        if missing not in found:
            assert not (folder / missing).exists()
    return found


CHANGES = {
    "longer": "echo and more >>file",
    "shorter": "truncate -s 3 file",
    "same length": "printf abcdefghij >file",
    "new": "echo new >new; echo new >dir/new; mkdir dir/sub/new",
    "gone": "rm file dir/inner link; rmdir dir/sub",
    "renamed file": "mv file moved",
    "renamed over": "mv other file",
    "renamed directory": "mv dir moved; echo more >>moved/inner",
    "moved into": "mkdir new; mv dir new/; mv file new/dir/sub/",
    "exchanged": "mv file a; mv dir file; mv a dir",
    "another kind": "rm file; mkdir file; touch file/in; rm link; echo text >link; rm -r dir; ln -s other dir",
    "another file": "cp other a; rm file; mv a file",
    "hard link": "ln file new; echo end >>new",
    "attributes": "setfattr -n user.mine -v 1 file; chmod 600 file; touch -d 2001-01-01 file dir",
    "mapped": "python3 -c \"import mmap; f=open('file','r+b'); m=mmap.mmap(f.fileno(),0); m[:3]=b'xyz'; m.flush()\"",
    "hole": "truncate -s 1M file; printf end >>file",
}


#: Every path that any of the changes concerns: each is asked for by itself, for listing a directory would make good
#: what is stale in it.
PATHS = (
    "file other link dir dir/inner dir/sub new dir/new dir/sub/new moved moved/inner moved/sub a new/dir "
    "new/dir/inner new/dir/sub/file file/in file/inner dir/../other"
)
SHOWN = (
    f"stat -c '%n %F %s %a %y %h' {PATHS} 2>&1; cat {PATHS} 2>&1; readlink {PATHS}; getfattr -d {PATHS} 2>/dev/null; "
    "find . -mindepth 1 -printf '%P %y %s %m %T@ %n\\n' | sort"
)


#: What is done after a first look at each.
AGAIN = (
    "rm -rf new dir; echo second >dir; mv file a; echo other >>other; ln -s nowhere file; "
    "mkdir -p new/dir; touch moved"
)


def shown(folder):
    """What the tree shows."""
    done = subprocess.run(["sh", "-c", SHOWN], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.rstrip()


@pytest.mark.parametrize("place", ["builds/x", "caches/x", "caches/x@label"], indirect=True)
@pytest.mark.parametrize("when", ["while it is native", "afterwards"])
def test_what_is_changed_natively_is_seen(tree, place, when):
    folders = [place / change for change in CHANGES]
    for folder in folders:
        folder.mkdir()
        fill(folder)
        shown(folder)
    shell = Shell(tree, place)

    def change(script):
        shell(f"cd '{place}/{folder.name}' && {script}")
        return shell(SHOWN).rstrip()

    natively = {}
    for folder in folders:
        natively[folder.name] = change(CHANGES[folder.name])
    if when == "while it is native":
        assert {folder.name: shown(folder) for folder in folders} == natively
        for folder in folders:
            natively[folder.name] = change(AGAIN)
        assert {folder.name: shown(folder) for folder in folders} == natively
    shell.end()
    assert {folder.name: shown(folder) for folder in folders} == natively
    for folder in folders:
        look(folder)
        (folder / "made through the tree").write_text("again")


def test_what_grows_natively_is_followed(place, shell):
    for number in range(20):
        shell(f"echo {number} >>file")
        assert (place / "file").read_text().endswith(f"{number}\n")
        assert (place / "file").stat().st_size == int(shell("stat -c %s file"))


def test_what_was_written_through_the_tree_is_there_natively_and_the_other_way_round(tree, place):
    for number in range(3):
        (place / "file").write_text(f"tree {number}")
        with open(place / "file", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[0:1] = b"T"
        shell = Shell(tree, place)
        assert shell("cat file") == f"Tree {number}"
        shell(f"echo native {number} >file")
        shell.end()
        assert (place / "file").read_text() == f"native {number}\n"
        with open(place / "file", "a") as file:
            file.write("appended\n")
        assert (place / "file").read_text() == f"native {number}\nappended\n"


def test_through_the_tree_it_can_only_be_read_meanwhile(place, shell):
    for change in (
        lambda: (place / "file").write_text(""),
        lambda: os.close(os.open(place / "file", os.O_RDWR)),
        lambda: (place / "file").unlink(),
        lambda: (place / "file").chmod(0o600),
        lambda: (place / "made").mkdir(),
        lambda: (place / "made").touch(),
        lambda: (place / "made").symlink_to("x"),
        lambda: os.link(place / "file", place / "made"),
        lambda: os.rename(place / "file", place / "made"),
        lambda: os.truncate(place / "file", 1),
        lambda: os.utime(place / "file"),
        lambda: os.setxattr(place / "file", "user.x", b"1"),
        lambda: (place / "dir/sub").rmdir(),
    ):
        with failing(errno.EBUSY):
            change()
    assert (place / "file").read_text() == "0123456789"
    shell.end()
    (place / "file").write_text("again")


def test_a_file_that_is_open_through_the_tree_keeps_it_from_being_native(tree, place):
    for mode in ("r", "a"):
        with open(place / "file", mode):
            command = [sys.executable, "-m", "zfsfs", "exec", place, "--", "true"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 125
            assert "1 files in it are open or mapped through the tree" in done.stderr
        (place / "file").write_text("0123456789")  # and it can be changed as before


def test_and_so_does_one_that_is_mapped_and_closed(tree, place):
    command = [sys.executable, "-m", "zfsfs", "exec", place, "--", "true"]
    with mapped(place / "file"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, "1 files in it are open or mapped" in done.stderr) == (125, True)
    subprocess.run(command, check=True)


def test_what_was_opened_meanwhile_reads_what_is_there_now(place, shell, then):
    with open(place / "file", "rb", buffering=0) as file, open(place / "other", "rb", buffering=0) as other:
        assert file.read() == b"0123456789"
        shell("printf abcdefghijklmno >file; rm other")
        then()
        assert os.pread(file.fileno(), 100, 0) == b"abcdefghijklmno"
        assert os.pread(other.fileno(), 100, 0) == b"other"
        os.fstat(file.fileno())


def test_a_private_mapping_is_of_what_was_there_when_it_was_made(place, shell):
    shell("printf mapped >file")
    with open(place / "file", "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapped:
        assert mapped[:] == b"mapped"
    shell("printf MAPPED >file")
    with open(place / "file", "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapped:
        assert mapped[:] == b"MAPPED"


def test_programs_can_be_run_through_the_tree_meanwhile(place, shell):
    shell("cp /bin/echo program")
    assert subprocess.run([place / "program", "ran"], capture_output=True, check=True).stdout == b"ran\n"


def test_working_directories_and_handles_from_before_stay_good(tree, place):
    inside = subprocess.Popen(
        ["sh", "-c", "cd dir; echo in; read x; pwd -P; cat inner; ls; cat ../file"],
        cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert inside.stdout is not None
    inside.stdout.readline()
    handle = os.open(place / "dir", os.O_RDONLY)
    shell = Shell(tree, place)
    shell("echo changed >dir/inner; touch dir/new; echo 1 >file")
    shell.end()
    assert sorted(os.listdir(handle)) == ["inner", "new", "sub"]
    os.close(handle)
    out, _ = inside.communicate("\n")
    assert out == f"{place}/dir\nchanged\ninner\nnew\nsub\n1\n"


def test_a_read_only_one_keeps_nobody_from_writing(tree, place):
    command = [
        sys.executable,
        "-m",
        "zfsfs",
        "exec",
        "--read-only",
        place,
        "--",
        "sh",
        "-c",
        "echo in; read x; cat $0",
    ]
    with subprocess.Popen([*command, place / "file"], stdin=-1, stdout=-1, text=True) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        (place / "file").write_text("new")
        out, _ = reader.communicate("\n")
    assert out == "new"


#: Says when it has a lease on a file, and gives it up when its input ends, whoever wants to write.
LEASE = """import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fcntl.fcntl(os.open(sys.argv[1], os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)
print("in", flush=True)
sys.stdin.read()"""


def test_nor_does_a_lease_that_is_taken_natively_keep_the_daemon_waiting(tree, place):
    (place / "file").write_bytes(bytes(16 << 20))  # which takes a while to be cut off
    command = [sys.executable, "-m", "zfsfs", "exec", "--read-only", place, "--", sys.executable, "-c", LEASE]
    for name in ("file", "other"):
        with subprocess.Popen([*command, place / name], stdin=-1, stdout=-1) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            with failing(errno.EAGAIN):
                os.truncate(place / name, 3)
            with failing(errno.EAGAIN):
                os.open(place / name, os.O_WRONLY | os.O_TRUNC)
            holder.communicate()
        os.truncate(place / name, 3)


def test_a_name_that_was_absent_before_an_unchanged_session_is_seen(tree, cache):
    path = tree / "caches/c@label"
    for _ in range(2):  # by a session that is unchanged, and by one after it
        with held(path):
            assert not (path / "new").exists()
        assert tree.outcome("c@label") == "unchanged"
    with held(path):
        shell = Shell(tree, path)
        shell("echo new >new")
        assert (path / "new").read_text() == "new\n"
        shell.end()
        assert (path / "new").read_text() == "new\n"
