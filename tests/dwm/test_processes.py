"""Workers have one thread and do not outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import torch

from dwm.processes import one_thread_pool

PARENT = """
import os, sys, time
from dwm.processes import one_thread_pool
from tests.dwm.test_processes import tell_and_sleep
if __name__ == "__main__":
    with one_thread_pool(1) as pool:
        pool.submit(tell_and_sleep, sys.argv[1]).result()
"""


def tell_and_sleep(path: str) -> None:
    with open(path + ".part", "w") as file:
        file.write(str(os.getpid()))
    os.replace(path + ".part", path)
    time.sleep(120)


def test_a_worker_ends_with_a_killed_parent(tmp_path):
    script, told = tmp_path / "parent.py", tmp_path / "pid"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    parent = subprocess.Popen([sys.executable, str(script), str(told)], env=environment)
    try:
        _wait(told.is_file, 60)
        worker = int(told.read_text())
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        _wait(lambda: not _lives(worker), 20)
        assert not _lives(worker)
    finally:
        parent.kill()


def test_workers_have_one_thread():
    with one_thread_pool(2) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1


def _wait(done, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
