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
    from .tasks.embedding import Embedder, embed, load
    from .tasks.integration import Integrator
    from .vocabulary import Vocabulary

__version__ = "0.1.0"
__all__ = ["Annotator", "Config", "Embedder", "Integrator", "Vocabulary", "__version__", "embed", "load"]

_HOMES = {
    "Annotator": ".tasks.annotation",
    "Config": ".config",
    "Embedder": ".tasks.embedding",
    "Integrator": ".tasks.integration",
    "Vocabulary": ".vocabulary",
    "embed": ".tasks.embedding",
    "load": ".tasks.embedding",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
