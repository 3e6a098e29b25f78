"""The declarations in datasets.yaml, tried on files that look like the ones they are for."""

from __future__ import annotations

import importlib
from pathlib import Path

import look_alikes
import pytest

from workflow.declarations import WORKFLOW, load_yaml
from workflow.recipes import _cells
from workflow.steps.tidy import load_tidy

DATASETS = load_yaml(WORKFLOW / "datasets.yaml", "datasets")
LOOK_ALIKES = {
    "ms": look_alikes.write_ms,
    "myeloid": look_alikes.write_myeloid,
    "hpancreas": look_alikes.write_hpancreas,
    "covid": look_alikes.write_covid,
    "covid_split": look_alikes.write_covid_split,
    "lung_kim": look_alikes.write_lung_kim,
    "lung_kim_split": look_alikes.write_lung_kim_split,
    "perirhinal": look_alikes.write_perirhinal,
    "immune_human": look_alikes.write_immune_human,
}
#: Recipes that go by the words of a declaration, and the module that knows their options.
BY_WORDS = {name: name for name in ("columns", "gxa", "threeca", "geo_myeloid")}
BY_WORDS["reference_query"] = "columns"


@pytest.mark.parametrize("name", [name for name in LOOK_ALIKES if name in DATASETS])
def test_a_declaration_reads_its_files(name: str, tmp_path: Path) -> None:
    entry = DATASETS[name]
    written = LOOK_ALIKES[name](tmp_path)
    files = written if isinstance(written, dict) else dict.fromkeys(entry["sources"], written)
    assert set(files) == set(entry["sources"])
    data, found = load_tidy(name, entry | {"expect": {}}, files)  # the sizes are those of the real files
    assert found["labels"]
    assert ("splits" in found) == (entry["tasks"].get("annotation", {}).get("split") == {"kind": "given"})
    if "integration" in entry["tasks"]:
        assert len(found["batches"]) > 1


@pytest.mark.parametrize("name", [n for n, e in DATASETS.items() if "obs" in e])
def test_options_are_known_to_the_recipe(name: str) -> None:
    recipe = DATASETS[name].get("recipe", "columns")
    if recipe in BY_WORDS:
        module = importlib.import_module(f"workflow.recipes.{BY_WORDS[recipe]}")
        _cells.options(DATASETS[name], *getattr(module, "OPTIONS", ()))
