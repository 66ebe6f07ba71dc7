"""What a run says while it goes: on stderr, as JSON lines, to TensorBoard where that is installed, and as a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from gar.data.sample import write_whole

MISSING = "pip install 'grasp-any-region[train]'"


class Log:
    """The log of one stage. A run that goes on drops the lines after its checkpoint: it will write them again.

    Args:
        out: folder of `stage.json`, `log.jsonl`, `loss.png` and `tensorboard`.
        start: the step that the run goes on from.
        quiet: say and write nothing, as all processes but the first.
    """

    def __init__(self, out: Path, name: str, start: int, quiet: bool = False):
        self.out, self.name, self.start, self.quiet = out, name, start, quiet
        self.file = out / "log.jsonl"
        self._board: Any = None
        self._console = Console(stderr=True, soft_wrap=True, markup=False)
        if quiet:
            return
        kept = [line for line in self._lines() if line["step"] <= start]
        write_whole(self.file, "".join(json.dumps(line) + "\n" for line in kept).encode())
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._say(f"no TensorBoard log without tensorboard: {MISSING}")
        else:
            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)

    def begin(self, about: dict[str, Any]) -> None:
        """Print the settings and save them with the run."""
        if self.quiet:
            return
        file = self.out / "stage.json"
        if self.start and file.exists():
            try:
                before = json.loads(file.read_text())
                changed = [k for k, v in json.loads(json.dumps(about)).items() if before.get(k) != v]
            except (ValueError, AttributeError):  # it was cut off
                changed = []
            self._say(f"goes on after step {self.start}" + (f", with other {', '.join(changed)}" if changed else ""))
        self._say(json.dumps(about))
        write_whole(file, json.dumps(about, indent=2).encode())

    def __call__(self, line: dict[str, Any]) -> None:
        """Write one line of figures; it has a "step"."""
        if self.quiet:
            return
        figures = ", ".join(f"{name} {value:g}" for name, value in _flat(line).items())
        self._say(f"step {line['step']}: {figures}")
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._board:
            for name, value in _flat(line).items():
                self._board.add_scalar(name, value, line["step"])
            self._board.flush()

    def plot(self) -> None:
        """Draw the losses over the steps as `loss.png`."""
        if self.quiet:
            return
        try:
            from matplotlib.figure import Figure
        except ImportError:
            self._say(f"no loss.png without matplotlib: {MISSING}")
            return
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss", title=self.name)
        lines = [(line["step"], _flat(line)) for line in self._lines()]
        for name in ("language", "heads", "validation/loss"):
            points = [(step, figures[name]) for step, figures in lines if name in figures]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, linewidth=1, marker="." if len(points) < 50 else "")
        axes.set_ylim(bottom=0)
        if axes.lines:
            axes.legend()
        figure.savefig(self.out / "loss.png", dpi=120)

    def close(self) -> None:
        if self._board:
            self._board.close()

    def _lines(self) -> list[dict[str, Any]]:
        """Its lines so far; a last one that was cut off does not count."""
        if not self.file.exists():
            return []
        lines = self.file.read_text().split("\n")[:-1]
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise ValueError(f"{self.file} has a line that is not JSON ({error}): remove that line") from error

    def _say(self, text: str) -> None:
        self._console.print(f"{self.name} {text}")


def _flat(line: dict[str, Any]) -> dict[str, float]:
    """The figures of a line, those inside of others named by the way to them: "validation/loss"."""
    figures = {}
    for name, value in line.items():
        if isinstance(value, dict):
            figures |= {f"{name}/{inner}": figure for inner, figure in _flat(value).items()}
        elif name != "step":
            figures[name] = value
    return figures
