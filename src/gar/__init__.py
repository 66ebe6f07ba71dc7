"""Describes and questions any region of an image or a video.

Holds the public names only, and loads what stands behind them at first use: `import gar` imports neither torch nor
transformers, yet transformers' Auto classes know the model type "GAR" from then on.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from gar import _register

if TYPE_CHECKING:
    from gar.inputs.processor import GARProcessor
    from gar.model.config import GARConfig
    from gar.model.gar import GARForConditionalGeneration
    from gar.predictor import Answer, Predictor, Scene, load
    from gar.regions import Located, Region, load_image

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "GARConfig",
    "GARForConditionalGeneration",
    "GARProcessor",
    "Located",
    "Predictor",
    "Region",
    "Scene",
    "load",
    "load_image",
]

_HOME = {
    "Answer": "gar.predictor",
    "GARConfig": "gar.model.config",
    "GARForConditionalGeneration": "gar.model.gar",
    "GARProcessor": "gar.inputs.processor",
    "Located": "gar.regions",
    "Predictor": "gar.predictor",
    "Region": "gar.regions",
    "Scene": "gar.predictor",
    "load": "gar.predictor",
    "load_image": "gar.regions",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gar' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))


_register.register(sys.modules[__name__])
