"""Makes transformers' AutoConfig, AutoModel and AutoProcessor know the model type "GAR", without importing them.

transformers finds its own models by tables of names, and looks a name up in `transformers.models.<type>` when it is
first used. We add ours to these tables: now where transformers has them already, else right after it has loaded them.
The public `AutoModel.register` would do only where transformers is loaded already: it wants the classes, so torch and
seconds of every `import gar`; and to import them as soon as transformers starts loading fails, since they stand on
parts of it that are then half loaded.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

_AUTO = "transformers.models.auto."
_NAMES = {
    f"{_AUTO}configuration_auto": {"CONFIG_MAPPING": "GARConfig"},
    f"{_AUTO}modeling_auto": {
        "MODEL_MAPPING": "GARForConditionalGeneration",
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING": "GARForConditionalGeneration",
    },
    f"{_AUTO}processing_auto": {"PROCESSOR_MAPPING": "GARProcessor"},
}


def _add(module: ModuleType) -> None:
    """Add our names to the tables of one of transformers' auto modules."""
    for table, name in _NAMES[module.__name__].items():
        getattr(module, f"{table}_NAMES")["GAR"] = name
        if table != "CONFIG_MAPPING":  # tables that were built before our configuration was known
            getattr(module, table)._reverse_config_mapping["GARConfig"] = "GAR"


class _AddAfterLoading(importlib.abc.MetaPathFinder):
    """Finds transformers' auto modules as usual, and has `_add` run at the end of their loading."""

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _NAMES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_add(module: ModuleType) -> None:
                load(module)
                _add(module)

            spec.loader.exec_module = load_and_add
        return spec


def register(package: ModuleType) -> None:
    """Have transformers find `GARConfig` and its siblings as (lazy) attributes of this package."""
    sys.modules["transformers.models.GAR"] = package
    for name in _NAMES:
        if name in sys.modules:
            _add(sys.modules[name])
    sys.meta_path.insert(0, _AddAfterLoading())
