"""The benchmark of training steps finds in the recipes what it measures."""

from __future__ import annotations

import runpy
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_nano_trains_as_a_whole_with_the_turns_of_its_recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    objective, _ = runpy.run_path(str(BENCHMARKS / "throughput.py"))["prepared"]("nano", None)
    assert all(p.requires_grad for p in objective.model.parameters())
    assert (objective.stage.batch, objective.stage.turns, objective.stage.hidden) == (4, 36, 0.0)
    assert not objective.stage.muon_rate
