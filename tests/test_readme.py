"""The lines of the README run as they stand, and what the documents mention is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NANO = ROOT / "src" / "gar" / "assets" / "nano" / "model.safetensors"
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])

needs_nano = pytest.mark.skipif(not NANO.exists(), reason="the built-in model is not in this checkout: it answers")


def blocks(*languages: str) -> list[str]:
    """The fenced blocks of the README in these languages, in order."""
    fenced = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [block for language, block in fenced if language in languages]


GAR_LINES = [line for block in blocks("console", "bash") for line in block.splitlines() if line.startswith("gar ")]


@pytest.fixture
def like_the_checkout(tmp_path) -> Path:
    """An empty folder in which the paths of the README are found, and into which its lines may write."""
    (tmp_path / "src").symlink_to(ROOT / "src")
    return tmp_path


def output_of(code: str, *arguments: str, folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "2"}
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@needs_nano
@pytest.mark.slow
def test_the_python_of_the_readme_runs_from_top_to_bottom(like_the_checkout):
    assert output_of("\n".join(blocks("python")), folder=like_the_checkout).strip()


@needs_nano
@pytest.mark.slow
@pytest.mark.parametrize("line", GAR_LINES)
def test_the_commands_of_the_readme_run(line, like_the_checkout):
    arguments = shlex.split(line)[1:]
    said = output_of("import sys; from gar.cli import main; sys.exit(main())", *arguments, folder=like_the_checkout)
    assert said.strip()
    if "--json" in arguments:
        json.loads(said)
    if "--show" in arguments:
        assert (like_the_checkout / arguments[arguments.index("--show") + 1]).exists()


def test_the_readme_begins_with_one_picture_three_lines_of_python_and_one_of_shell():
    assert README.index("](docs/sample.png)") < README.index("```python") < README.index("```console")
    assert len(blocks("python")[0].splitlines()) == 3
    assert len(blocks("console")[0].splitlines()) == 1


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_tests_that_a_document_mentions_exist(document):
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)\s#]+)", text) if "://" not in link]
    missing = {link for link in links if not (document.parent / link).exists()}
    for span in re.findall(r"`([^`\s]+)`", text):
        path, _, test = span.partition("::")
        if not re.fullmatch(r"(src|tests|docs|benchmarks)/.+|[\w/]+\.py", path):
            continue
        found = [folder / path for folder in (ROOT, ROOT / "src" / "gar") if (folder / path).exists()]
        if not found or (test and f"def {test}(" not in found[0].read_text()):
            missing.add(span)
    if not NANO.exists():  # it and the pictures of its answers come together
        missing = {path for path in missing if not path.endswith(".png") and "assets" not in path}
    assert not missing
