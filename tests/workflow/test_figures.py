"""The headline figure, from made-up rows: what a reader could miss is said in it."""

from __future__ import annotations

import pandas as pd
import pytest
from matplotlib.collections import PathCollection

from workflow import tasks
from workflow.steps.figures import draw_headline


@pytest.mark.parametrize(
    ("values", "arrows"),
    [([0.97, 0.98, 0.999], ">"), ([0.001, 0.02, 0.05], "<"), ([0.1, 0.9], "<>"), ([0.5, 0.51, 0.52], "")],
)
def test_an_interval_that_leaves_the_range_says_so(values, arrows):
    seeds = range(len(values))
    runs = pd.DataFrame(
        {"method": "scvi", "kind": "deep", "seed": seeds, "status": "ok", "why": "", "reason": ""}
    )
    rows = pd.concat(
        pd.DataFrame({"method": "scvi", "metric": m, "metric_impl": i, "value": values, "seed": seeds})
        for m, i in tasks.get("annotation").HEADLINE
    )
    fig = draw_headline(rows, runs, "annotation", "pbmc68k", {"scvi": "scVI"}, "Title")
    points = [c.get_offsets() for c in fig.axes[0].collections if isinstance(c, PathCollection)]
    drawn = [offsets[0][0] for offsets in points if len(offsets) == 1]
    # one point by itself is an arrow (dots stand for all seeds together): at 0 to the left, at 1 to the right
    assert sorted(drawn) == sorted({"<": 0, ">": 1}[arrow] for arrow in arrows)
    assert ("interval goes on" in [t.get_text() for t in fig.legends[0].get_texts()]) == bool(arrows)
