"""What all figures share: how they look and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from workflow.files import atomic

STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "svg.hashsalt": "scmamba2",
    "svg.fonttype": "none",
}


def save(fig: plt.Figure, path: Path) -> None:
    """Write PNG (200 dots per inch) and SVG, without the date that would make bytes differ."""
    for target in (path, path.with_suffix(".svg")):
        meta = {"Date": None} if target.suffix == ".svg" else {"Software": None}
        with atomic(target) as part:
            fig.savefig(part, dpi=200, metadata=meta)
    plt.close(fig)
