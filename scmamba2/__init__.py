"""scmamba2: SC-MAMBA2, a bidirectional Mamba-2 over gene tokens, for single-cell data.

>>> from scmamba2 import Integrator
>>> embedding = Integrator("tiny").fit_transform(adata)  # doctest: +SKIP

Importing the package is instant; PyTorch is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config
    from .tasks.annotation import Annotator
    from .tasks.integration import Integrator
    from .vocabulary import Vocabulary

__version__ = "0.1.0"
__all__ = ["Annotator", "Config", "Integrator", "Vocabulary", "__version__"]

_HOMES = {
    "Annotator": ".tasks.annotation",
    "Config": ".config",
    "Integrator": ".tasks.integration",
    "Vocabulary": ".vocabulary",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
