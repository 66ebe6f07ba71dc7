"""Several processes of one command on this machine, which meet and share the work; the end of one is the end of all.

The processes find what `torchrun` would tell them in the environment, so that a command works under either. But here
only the first failure is told: what the others say of a partner that is gone would bury it. Knows no training, and does
not import torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FOLDER = "GAR_LAUNCH"  # environment variable: where the processes meet and leave their error


def launch(command: Sequence[str], processes: int) -> int:
    """Run a command in so many processes until all are done or one has failed, which is told on stderr.

    Returns:
        0, or the exit status of the first that failed.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and so the processes end as well
    with TemporaryDirectory(prefix="gar-") as folder:
        shared = os.environ | {FOLDER: folder, "WORLD_SIZE": str(processes)}
        shared.setdefault("OMP_NUM_THREADS", "1")
        started: list[subprocess.Popen] = []
        error = Path(folder) / "error"
        try:
            for rank in range(processes):
                mine = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                started.append(subprocess.Popen(command, env=shared | mine))
            while not error.exists() and not any(codes := [one.poll() for one in started]) and None in codes:
                time.sleep(0.1)
            codes = [one.poll() or 0 for one in started]
        finally:
            for one in started:
                one.terminate()
            for one in started:
                one.wait()
        if error.exists() and -signal.SIGKILL not in codes:  # where one was killed, the error is that it is gone
            first = json.loads(error.read_text())
            print(first["text"], file=sys.stderr)
            return first["status"]
        for rank, code in enumerate(codes):
            if code < 0:
                ended = f"process {rank} of {processes} was ended by {signal.Signals(-code).name}"
                advice = "SIGKILL is most often for lack of memory; the same command again goes on where it was"
                print(f"gar: error: {ended} ({advice})", file=sys.stderr)
                return 128 - code
        return next(filter(None, codes), 0)


def meeting() -> str:
    """Where `torch.distributed` finds the other processes, as an init method."""
    folder = os.environ.get(FOLDER)
    return f"file://{folder}/meeting" if folder else "env://"


def fail(text: str, status: int) -> int:
    """Tell why this process ends: on stderr, or to the one that launched it, to which only the first comes through."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        print(text, file=sys.stderr)
        return status
    written = Path(folder) / f"error-{os.getpid()}"
    written.write_text(json.dumps({"text": text, "status": status}))
    with suppress(FileExistsError):
        os.link(written, written.with_name("error"))
    return status


def excepthook(*error: Any) -> None:
    """`fail` with the trace of an error that nobody has caught, as a `sys.excepthook`."""
    fail("".join(traceback.format_exception(*error)).rstrip(), 1)
