"""What /proc tells of processes."""

from __future__ import annotations

import os
import subprocess
import threading

from zfsfs.native.processes import Process, kernel_threads, lineage, read_proc, started, unescaped


def test_a_process_is_told_by_its_number_and_its_start():
    mine = Process.of(os.getpid())
    assert mine == Process(os.getpid(), started(os.getpid()))
    child = subprocess.Popen(["sleep", "1000"])
    assert [each.pid for each in lineage(child.pid)][:2] == [child.pid, os.getpid()]
    assert lineage(child.pid)[1] == mine
    assert all(each.pid > 1 for each in lineage(child.pid))
    child.kill()
    child.wait()
    assert Process.of(child.pid) is None
    assert started(child.pid) == -1
    assert lineage(child.pid) == []


def test_a_thread_is_its_process():
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(Process.of(threading.get_native_id())))
    thread.start()
    thread.join()
    assert found == [Process.of(os.getpid())]


def test_what_cannot_be_seen_is_one():
    assert Process.of(0) == Process.of(0) is not None
    assert lineage(0) == [Process.of(0)]
    assert Process.of(-1) is None


def test_what_proc_writes():
    assert read_proc("/proc/self/nothing") == b""
    assert unescaped(rb"a\040b\134c") == b"a b\\c"


def test_the_kernels_own_threads_are_known_and_nobody_else_is_taken_for_one():
    with subprocess.Popen(["sleep", "60"]) as child:
        for _ in range(2):  # the second time it remembers them
            threads = kernel_threads()
            assert not {1, os.getpid(), child.pid} & threads
            assert all(read_proc(f"/proc/{pid}/cmdline") == b"" for pid in threads)
            if read_proc("/proc/2/comm") == b"kthreadd\n" and read_proc("/proc/2/task/2/children"):
                assert threads
        child.kill()
