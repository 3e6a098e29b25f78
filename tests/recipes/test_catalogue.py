"""Every dataset of datasets.yaml, from files that look like the published ones to what tasks are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import look_alikes
import omics_files
import pytest
import test_recipe_gears
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings
from support import ROOT

from workflow import tasks
from workflow.declarations import WORKFLOW, load_yaml
from workflow.steps.tidy import load_tidy, read, write
from workflow.tidy import log_normalize

DATASETS = load_yaml(WORKFLOW / "datasets.yaml", "datasets")
PREPARED = [name for name, entry in DATASETS.items() if {"recipe", "obs"} & set(entry)]
ELSEWHERE = {"pbmc_cite", "pbmc68k", "pbmc10k", "pbmc10k_mini"}  # their recipes have tests on real files


def gears(cell_type: str, counts: str) -> Callable[[Path], dict[str, Path]]:
    def write(folder: Path) -> dict[str, Path]:
        adata = test_recipe_gears.screen(cell_type=cell_type)
        return test_recipe_gears.save(adata, folder / "perturb_processed.h5ad", counts)

    return write


def one(write: Callable[[Path], Path]) -> Callable[[Path], dict[str, Path]]:
    return lambda folder: {"cells": write(folder)}


WRITERS: dict[str, Callable[[Path], dict[str, Path]]] = {
    "perirhinal_cortex": one(look_alikes.write_perirhinal),
    "covid19": one(look_alikes.write_covid),
    "lung_kim": one(look_alikes.write_lung_kim),
    "immune_human": one(look_alikes.write_immune_human),
    "ms": look_alikes.write_ms,
    "ms_raw": look_alikes.write_gxa,
    "myeloid_raw": look_alikes.write_geo_myeloid,
    "lung_kim_raw": look_alikes.write_threeca,
    "myeloid": look_alikes.write_myeloid,
    "hpancreas": look_alikes.write_hpancreas,
    "covid19_mapping": look_alikes.write_covid_split,
    "lung_kim_mapping": look_alikes.write_lung_kim_split,
    "multiome_pbmc": omics_files.write_glue,
    "bmmc_cite": one(lambda folder: omics_files.write_bmmc(folder / "cite.h5ad", "ADT")),
    "bmmc_multiome": one(lambda folder: omics_files.write_bmmc(folder / "multiome.h5ad", "ATAC")),
    "asap_pbmc": lambda folder: omics_files.write_scmomat(
        folder, {"1": "GP", "2": "GP", "3": "RP", "4": "RP"}
    ),
    "norman": gears("A549", "dense"),
    "adamson": gears("K562(?)", "none"),
    "replogle_k562": gears("K562", "none"),
    "replogle_rpe1": gears("rpe1", "none"),
    "replogle_k562_subset": gears("K562", "none"),
}


def test_every_dataset_has_a_look_alike():
    assert set(PREPARED) == set(WRITERS) | ELSEWHERE


@pytest.mark.parametrize("name", WRITERS)
def test_the_declaration_fits_the_published_structure(name: str, tmp_path: Path) -> None:
    entry = DATASETS[name]
    written = tmp_path / "files"
    written.mkdir()
    files = WRITERS[name](written)
    assert set(entry["sources"]) <= set(files)
    files = {source: files[source] for source in entry["sources"]}
    data, found = load_tidy(name, entry | {"expect": {}}, files)  # the numbers are those of the real files
    # what is asserted of the real files can be counted
    assert set(entry["expect"]) - {"batches"} <= set(found)
    write(data, tmp_path / ("tidy.h5mu" if "modalities" in found else "tidy.h5ad"))
    data = read(tmp_path / ("tidy.h5mu" if "modalities" in found else "tidy.h5ad"))
    assert data.uns["recipe"]["name"] == entry.get("recipe", "columns")
    for task, settings in entry["tasks"].items():
        if entry.get("values") != "lognorm":
            log_normalize(data)
        given, solution, _ = tasks.get(task).make_io(data, settings)
        assert given.X is not None and "highly_variable" in given.var
        assert "label" in solution.obs


def planned(folder: Path, target: str, **config: str) -> list:
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow_api = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(config=config),
            snakefile=ROOT / "Snakefile",
            workdir=folder,
        )
        dag_api = workflow_api.dag(DAGSettings(targets={target}))
        dag_api.execute_workflow(executor="dryrun")
        return [job for job in workflow_api._workflow.dag.jobs if job.wildcards]


@pytest.mark.parametrize(
    ("target", "rule", "names"), [("download", "fetch", list(DATASETS)), ("prepare", "tidy", PREPARED)]
)
def test_one_command_plans_the_whole_catalogue(tmp_path, target, rule, names):
    jobs = planned(tmp_path, target)
    assert sorted(job.wildcards.dataset for job in jobs if job.rule.name == rule) == sorted(names)
    assert not [job for job in jobs if job.rule.name.startswith("run_")]


@pytest.mark.parametrize(
    ("data", "names"), [("norman", {"norman"}), (["ms", "norman"], {"ms", "norman"}), ("selected", None)]
)
def test_a_part_of_the_catalogue_can_be_asked_for(tmp_path, data, names):
    files = {f"checkpoint_{name}" for name in ("scmamba2", "scgpt", "scbert")} | {"gene_sets_tosica"}
    files = set() if names else files
    names = names or set(load_yaml(WORKFLOW / "config.yaml", "config")["select"]["datasets"])
    tidy = [job for job in planned(tmp_path, "prepare", data=data) if job.rule.name == "tidy"]
    assert {job.wildcards.dataset for job in tidy} == names
    # what the selected methods start from is brought, too
    assert {job.wildcards.dataset for job in planned(tmp_path, "download", data=data)} == names | files
