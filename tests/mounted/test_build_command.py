"""zfsfs build: from mkdir to a result in one command."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
from contextlib import closing

import pytest
from mounted_tree import until, zfsfs

from zfsfs.errors import Refused
from zfsfs.native import wire
from zfsfs.native.client import output_of, socket_of


def build(tree, ident, *words, expect=0, options=(), env=None):
    """Run it; returns what it said on standard output and error."""
    command = [sys.executable, "-m", "zfsfs", "build", *map(str, options), tree.path, ident, "--", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)
    assert done.returncode == expect, done.stderr
    return done.stdout, done.stderr


def nothing_left(tree):
    assert os.listdir(tree / "builds") == os.listdir(tree / "results") == []


@pytest.fixture(params=[[], ["--native"]], ids=["tree", "native"])
def way(request):
    return request.param


def test_success_is_published(tree, way):
    script = "pwd; echo $ZFSFS_ID $ZFSFS_BASE $ZFSFS_BUILD; echo made >file"
    out, err = build(tree, "one", "sh", "-c", script, options=way)
    assert out.split() == [f"{tree.path}/builds/one", "one", f"{tree.path}/builds/one"]
    assert (tree / "results/one/file").read_text() == "made\n"
    assert os.listdir(tree / "builds") == []
    assert "build one is started\n" in err
    assert "build one is published after" in err
    out, err = build(tree, "two", "sh", "-c", "cat file; echo $ZFSFS_BASE", options=[*way, "--base", "one"])
    assert out == "made\none\n"


def test_failure_is_discarded_with_the_commands_exit_code(tree, way):
    _, err = build(tree, "one", "sh", "-c", "echo x >file; exit 3", expect=3, options=way)
    assert "has failed with exit code 3" in err
    build(tree, "one", "sh", "-c", "kill -9 $$", expect=128 + 9, options=way)
    build(tree, "one", "no-such-command", expect=127, options=way)
    nothing_left(tree)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_is_discarded(tree, way, number):
    command = [sys.executable, "-m", "zfsfs", "build", *way, tree.path, "one"]
    command += ["--", "sh", "-c", "echo in; exec sleep 60"]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.killpg(process.pid, number)
        _, err = process.communicate()
    assert process.returncode == 128 + number
    assert f"interrupted by {number.name}, and is discarded" in err
    nothing_left(tree)


def changed(tree, change, *words, options=()):
    """The same by a program in which something is changed, `b` being its module; what it said on standard error."""
    program = f"import os, time, zfsfs.cli.building as b\n{change}\nfrom zfsfs.cli import main\nmain()"
    command = [sys.executable, "-c", program, "build", *options, tree.path, "one", "--", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stderr


#: The daemon takes its time, and meanwhile a signal comes.
INTERRUPTED_BEFORE = """
from zfsfs.cli import output
class Output(output.Output):
    def __init__(self, build):
        super().__init__(build)
        os.kill(os.getpid(), 15)
output.Output = Output
"""
#: It comes while somebody holds the build who keeps it from being published.
INTERRUPTED_AFTER = """
class Time:
    monotonic = time.monotonic
    def sleep(seconds):
        b.PATIENCE = 0
        os.kill(os.getpid(), 15)
b.time = Time
"""


def test_a_signal_that_comes_before_the_command_is_started_keeps_it_from_that(tree, way, tmp_path):
    code, err = changed(tree, INTERRUPTED_BEFORE, "touch", tmp_path / "made", options=way)
    assert (code, err.splitlines()[1:]) == (143, ["zfsfs: build one was interrupted by SIGTERM, and is discarded"])
    assert not (tmp_path / "made").exists()
    nothing_left(tree)


def test_a_signal_that_comes_while_it_is_published_ends_that(tree):
    script = "setsid sleep 30 <&- >&- 2>&- & echo $! >pid"
    code, err = changed(tree, INTERRUPTED_AFTER, "sh", "-c", script, options=["--native"])
    assert code == 143
    assert "build one was interrupted by SIGTERM, and is still there" in err
    assert err.count("\n") == 2
    os.kill(int((tree / "builds/one/pid").read_text()), signal.SIGKILL)
    until(lambda: not tree.status()["native"])
    os.rmdir(tree / "builds/one")


@pytest.mark.parametrize("code", [0, 7])
def test_what_has_got_the_name_of_a_build_that_was_removed_is_left_alone(tree, tmp_path, code):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    command = [sys.executable, "-m", "zfsfs", "build", tree.path, "one", "--"]
    command += ["sh", "-c", f"echo in; read line <{gate}; exit {code}"]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.rmdir(tree / "builds/one")
        os.mkdir(tree / "builds/one")
        (tree / "builds/one/file").touch()
        gate.write_text("go on\n")
        _, err = process.communicate(timeout=60)
    assert process.returncode == (code or 125)
    assert "it has been removed already" in err
    assert err.count("\n") == 2
    assert (tree / "builds/one/file").exists()
    assert os.listdir(tree / "results") == []
    os.rmdir(tree / "builds/one")


def test_the_environment_is_the_callers_and_what_is_said_of_the_build(tree, way):
    environment = {"PATH": os.environ["PATH"]}
    out, _ = build(tree, "one", "env", options=way, env=environment)
    environment |= {"ZFSFS_ID": "one", "ZFSFS_BASE": "", "ZFSFS_BUILD": f"{tree.path}/builds/one"}
    assert sorted(out.splitlines()) == sorted(f"{name}={value}" for name, value in environment.items())


def test_the_command_has_no_descriptor_but_its_input_and_output(tree, way):
    out, _ = build(tree, "one", "ls", "/proc/self/fd", options=way)
    assert out.split() == ["0", "1", "2", "3"]  # 3: what ls reads


def test_caches_are_held_and_published(tree, way):
    (tree / "caches/cc").mkdir()
    use = [*way, "--cache", "cc@job:CC_DIR"]
    out, _ = build(tree, "one", "sh", "-c", "echo $CC_DIR; echo warm >$CC_DIR/entry; sleep 0.3; cat $CC_DIR/entry",
                   options=use)  # fmt: skip
    assert out == f"{tree.path}/caches/cc@job\nwarm\n"
    assert tree.outcome("cc@job") == "published"
    assert (tree / "caches/cc/entry").read_text() == "warm\n"


def test_a_cache_can_lie_at_a_path(tree, tmp_path):
    (tree / "caches/cc").mkdir()
    there = tmp_path / "there"
    there.mkdir()
    build(tree, "one", "sh", "-c", f"echo warm >{there}/entry", options=["--native", "--cache", f"cc:{there}"])
    assert os.listdir(there) == []
    assert tree.outcome("cc") == "published"
    assert (tree / "caches/cc/entry").read_text() == "warm\n"


def log_of(tree, ident):
    return (tree / ".zfsfs/log" / ident).read_text()


def test_the_output_goes_where_it_would_have_gone_and_is_kept(tree, way):
    script = "echo one; echo two >&2; head -c 300000 /dev/zero | tr '\\0' x; exit $0"
    for code, ident in ((0, "good"), (7, "bad")):
        out, err = build(tree, ident, "sh", "-c", script, str(code), options=way, expect=code)
        assert out == "one\n" + "x" * 300000
        assert "\ntwo\n" in err
        assert sorted(log_of(tree, ident)) == sorted(out + "two\n")
    build(tree, "none", "no-such-command", options=way, expect=127)
    assert "no-such-command: No such file" in log_of(tree, "none")
    tree.umount()
    tree.mount()
    assert log_of(tree, "good").startswith("one\n")
    (tree / "results/good").rmdir()
    assert os.listdir(tree / ".zfsfs/log") == []


def test_what_is_printed_to_one_file_is_in_order(tree, tmp_path):
    words = ["build", tree.path, "one", "--", "sh", "-c", "for i in 1 2 3; do echo $i; echo e$i >&2; done"]
    with (tmp_path / "out").open("w") as file:
        subprocess.run([sys.executable, "-m", "zfsfs", *map(str, words)], stdout=file, stderr=file, check=True)
    assert log_of(tree, "one") == "1\ne1\n2\ne2\n3\ne3\n"
    assert log_of(tree, "one") in (tmp_path / "out").read_text()


def test_on_a_terminal_the_command_prints_to_one_too(tree, tmp_path):
    script = "test -t 1 && test -t 2 && stty size <&1 && printf 'a\\nb' && exec 3</dev/tty && test -t 0"
    command = f'stty rows 33 cols 77; {sys.executable} -m zfsfs build {tree.path} one -- sh -c "{script}"'
    done = subprocess.run(
        ["script", "-qec", command, tmp_path / "typed"], input=b"", capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert log_of(tree, "one") == "33 77\na\nb"
    assert b"33 77\r\na\r\nb" in done.stdout


#: Says how wide its output is when it is told that this has changed.
WIDTH = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
print("in", flush=True)
while signal.sigwait([signal.SIGWINCH]):
    print(os.get_terminal_size(1).columns, flush=True)
"""


def test_a_terminal_that_becomes_another_size_is_so_for_the_command(tree):
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "zfsfs", "build", tree.path, "one", "--", sys.executable, "-c", WIDTH]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:  # fmt: skip
        os.close(theirs)
        seen = bytearray()

        def last_line() -> bytes:
            if select.select([ours], [], [], 0)[0]:
                seen.extend(os.read(ours, 4096))
            return bytes(seen.rstrip().rpartition(b"\n")[2])

        try:
            until(lambda: last_line() == b"in")
            for columns in range(50, 60):
                fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("=HHHH", 24, columns, 0, 0))
                until(lambda columns=columns: last_line() == b"%d" % columns)
        finally:
            process.terminate()
            assert process.wait(30) == 143
    os.close(ours)


def test_who_reads_no_more_is_noticed_by_the_command(tree):
    command = [sys.executable, "-m", "zfsfs", "build", tree.path, "one", "--", "yes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait() == 128 + signal.SIGPIPE
    assert log_of(tree, "one").startswith("y\ny\n")
    nothing_left(tree)


def test_an_output_on_a_full_disk_ends_no_command(tree):
    words = ["sh", "-c", "for each in 1 2 3; do echo $each; sleep 0.1; done; touch made"]
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "zfsfs", "build", tree.path, "one", "--", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tree / "results/one/made").exists()
    assert log_of(tree, "one") == "1\n2\n3\n"


def test_an_output_that_nobody_reads_keeps_no_interrupted_build_from_its_end(tree):
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "zfsfs", "build", tree.path, "one", "--", "sh", "-c", "yes"]
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        os.close(writer)
        full = fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ)
        until(lambda: int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder) == full)
        process.terminate()
        try:
            _, err = process.communicate(timeout=30)
        finally:
            os.close(reader)
    assert process.returncode == 143
    assert "is discarded" in err
    nothing_left(tree)


def test_a_process_that_prints_on_keeps_no_build_from_its_end(tree):
    # Out of the build before it is forked: it may come late to do so, and keeps the tree busy until then.
    build(tree, "one", "sh", "-c", "echo first; cd /; (while echo more; do sleep 0.01; done) & exit 0")
    assert log_of(tree, "one").startswith("first\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_only_who_made_a_build_has_its_output_kept(tree):
    folder = tree / "builds/one"
    folder.mkdir(mode=0o755)
    code = f"import os; from zfsfs.native.client import output_of; os.setuid(5); output_of({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Answered: build one is not yours" in done.stderr
    with output_of(str(folder)), pytest.raises(Refused, match="kept already"):
        output_of(str(folder))
    with pytest.raises(Refused, match="no build"):
        output_of(str(folder.parent))
    folder.rmdir()


def test_who_has_a_build_open_that_is_gone_says_nothing_of_the_next(tree):
    folder = tree / "builds/one"
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY)
    folder.rmdir()
    folder.mkdir()
    connection = wire.Connection(socket_of(str(tree.path)))
    with closing(connection), pytest.raises(Refused, match="no build"):
        connection.ask({"verb": "keep"}, [fd])
    os.close(fd)
    folder.rmdir()


def test_nothing_is_kept_of_a_build_that_has_ended(tree):
    """Whoever holds on to where it was sent to."""
    for _ in range(2):
        (tree / "builds/one").mkdir()
        with output_of(str(tree / "builds/one")) as kept:
            kept.sendall(b"first\n")
            until(lambda: log_of(tree, "one") == "first\n")
            (tree / "builds/one").rmdir()
            kept.settimeout(60)
            assert kept.recv(1) == b""
        assert log_of(tree, "one") == "first\n"


def test_what_cannot_be_built_is_said_in_one_line(tree, tmp_path):
    build(tree, "one", "true")
    for ident, options, code, text in (
        ("one", [], 125, "is a result, or is being built"),
        ("two", ["--base", "none"], 125, "no result none"),
        ("two", ["--cache", "none:X"], 125, "No such file"),
        ("two", ["--cache", "none"], 2, "--cache none"),
        ("two", ["--cache", "a:1X"], 2, "no variable"),
        ("two", ["--cache", "a:/x"], 2, "needs --native"),
        ("a/b", [], 2, "an id has no"),
        ("x+y", [], 2, "mkdir builds/BUILDER+ID"),
    ):
        _, err = build(tree, ident, "true", options=options, expect=code)
        assert text in err
        assert err.count("\n") == 1
    assert "no zfsfs" in zfsfs("build", tmp_path, "x", "--", "true", expect=125).stderr
    zfsfs("build", tree.path, "x", expect=2)
    assert os.listdir(tree / "builds") == []


@pytest.fixture(params=["full", "closed", "unread"])
def unwritable(request):
    """A standard error that can't be written."""
    if request.param == "unread":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full", os.O_WRONLY)
    yield writer, (lambda: os.close(2)) if request.param == "closed" else None
    os.close(writer)


def test_what_cannot_be_said_changes_nothing(tree, unwritable):
    stderr, before = unwritable
    for ident, words, code, options in (
        ("one", ["sh", "-c", "touch made"], 0, []),
        ("two", ["sh", "-c", "exit 3"], 3, []),
        ("two", ["/nonexistent/command"], 127, []),
        ("two", ["true"], 125, ["--base", "none"]),
        ("two", ["true"], 2, ["--cache", "none"]),
        ("two", ["true"], 2, ["--frobnicate"]),
    ):
        command = [sys.executable, "-m", "zfsfs", "build", tree.path, ident, *options, "--", *words]
        done = subprocess.run(command, stdout=-1, stderr=stderr, preexec_fn=before, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (code, b""), words
        assert os.listdir(tree / "builds") == []
    assert os.listdir(tree / "results") == ["one"]
    assert (tree / "results/one/made").exists()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_keep_nothing_from_being_built(tree, way, closed):
    words = [sys.executable, "-m", "zfsfs", "build", *way, tree.path, "one"]
    words += ["--", "sh", "-c", "echo out; echo err >&2"]
    subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *map(str, words)], check=True, timeout=60)
    assert log_of(tree, "one") == "out\nerr\n"


def test_the_exit_code_is_the_commands_also_when_the_daemon_has_been_killed(tree):
    _, err = build(tree, "one", "sh", "-c", f"kill -9 {tree.pid}; exit 3", expect=3)
    assert "has failed with exit code 3" in err.splitlines()[-1]
    assert "is still there" in err
    tree.mount()


def test_who_ignores_the_end_of_children_learns_how_the_command_ended(tree):
    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    for ident, words, code in (
        ("one", ["grep", "SigIgn", "/proc/self/status"], 0),
        ("two", ["sh", "-c", "exit 3"], 3),
    ):
        command = [sys.executable, "-m", "zfsfs", "build", tree.path, ident, "--", *words]
        done = subprocess.run(command, preexec_fn=ignore, capture_output=True, check=False)
        assert done.returncode == code, done.stderr
    assert log_of(tree, "one").split() == ["SigIgn:", f"{1 << signal.SIGCHLD - 1:016x}"]


def test_a_process_that_stays_in_the_build_is_named(tree):
    script = "setsid sleep 30 <&- >&- 2>&- & echo $! >pid"
    command = [
        sys.executable,
        "-c",
        "import zfsfs.cli.building as b; b.PATIENCE = 0.5; from zfsfs.cli import main; main()",
    ]
    command += ["build", "--native", tree.path, "one", "--", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert "of sleep (pid " in done.stderr
    pid = int((tree / "builds/one/pid").read_text())
    os.kill(pid, signal.SIGKILL)
    until(lambda: not tree.status()["native"])
    os.rmdir(tree / "builds/one")
