"""Processes that are started together: one word at the end, from the one that failed first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gar.train.processes import join

ROOT = Path(__file__).parents[1]
# What each of two processes runs: a command that meets the other one and waits for it.
TOGETHER = """
import os, signal, sys
import torch.distributed as dist
from gar import cli
from gar.train.launch import meeting

@cli.train_app.command("together")
def together():
    cli._launch(2)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", meeting(), rank=rank, world_size=2)
    if rank in {failing}:
        {failure}
    dist.barrier()

sys.exit(cli.main(["train", "together"]))
"""


def run(*command: str) -> tuple[int, list[str]]:
    """The exit status of a command, and its lines on stderr."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.returncode, [line for line in done.stderr.splitlines() if line]


def together(failing: set[int], failure: str) -> tuple[int, list[str]]:
    code = TOGETHER.format(failing=failing, failure=failure)
    launching = (
        "import sys; from gar.train.launch import launch; sys.exit(launch([sys.executable, '-c', sys.argv[1]], 2))"
    )
    return run(sys.executable, "-c", launching, code)


@pytest.mark.parametrize("failing", [{0}, {1}, {0, 1}])
def test_a_users_error_in_any_process_is_one_line_and_the_exit_status_of_one(failing: set[int]):
    status, said = together(failing, "raise ValueError('no such\\npicture')")
    assert (status, said) == (2, ["gar: error: no such picture"])


def test_of_an_error_in_the_code_the_trace_is_shown_once():
    status, said = together({0, 1}, "raise RuntimeError('a bug')")
    assert status == 1 and said[0].startswith("Traceback") and said.count("RuntimeError: a bug") == 1


def test_a_process_that_was_killed_is_told_and_not_what_the_other_says_of_it():
    status, said = together({1}, "os.kill(os.getpid(), signal.SIGKILL)")
    assert status == 137 and len(said) == 1 and "process 1 of 2 was ended by SIGKILL" in said[0]


def test_two_that_do_not_fail_end_with_nothing_to_say():
    assert together(set(), "pass") == (0, [])


def test_a_process_takes_the_gpu_of_its_number_and_says_where_there_is_none(monkeypatch: pytest.MonkeyPatch):
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    for name, value in {"WORLD_SIZE": "3", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    join("nccl")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="2 GPUs here, and a process for number 2"):
        join("nccl")
    assert taken == [1]


@pytest.mark.slow
def test_a_wrong_path_is_the_same_line_for_one_process_and_for_two(tmp_path: Path):
    command = [sys.executable, "-m", "gar.cli", "train", "finetune", "--data", "/nowhere", "--out", str(tmp_path)]
    assert run(*command, "--device", "cpu") == run(*command, "--device", "cpu", "--launch", "2")
