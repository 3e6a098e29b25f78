"""Training. Start with :mod:`scmamba2.training.trainer`."""

from .batches import Batch, Cells, Objective, load, minibatches, split
from .settings import Training
from .trainer import train

__all__ = ["Batch", "Cells", "Objective", "Training", "load", "minibatches", "split", "train"]
