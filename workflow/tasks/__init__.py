"""The tasks. One module each, with the same three functions.

``make_io(adata, settings)``
    Part a tidy dataset into what a method is given and what only scoring may see.
``score(output, solution, seed)``
    Score one checked output: a list of rows (metric, metric_impl, unit_level, unit_id, value, n_units).
``units(output, solution)``
    What the interval of a score resamples besides seeds (the prediction of each cell), or None.
``HEADLINE``
    The (metric, metric_impl) pairs that tables show, first one first.
``PAPER_TABLE``
    Those of them that the headline table shows: what the paper's own tables show.
``MUST_HAVE``
    The rows that a headline table must have: pairs of a name for people and the methods that satisfy it.
"""

import importlib
from types import ModuleType

NAMES = ("integration", "annotation")


def get(task: str) -> ModuleType:
    """Return the module of a task; it is imported only now, because metrics are slow to import."""
    if task not in NAMES:
        raise ValueError(f"unknown task {task!r}; valid: {', '.join(NAMES)}")
    return importlib.import_module(f"workflow.tasks.{task}")
