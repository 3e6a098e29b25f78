"""Snakemake plans every declared run of the paper's configuration, no more and no less."""

from __future__ import annotations

import pytest
from snakemake.api import SnakemakeApi
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    OutputSettings,
    Quietness,
    ResourceSettings,
)
from support import ROOT

from workflow.declarations import WORKFLOW, Run, load_plan, load_yaml


def planned(tmp_path, *configfiles) -> list[Run]:
    """Return the runs in Snakemake's graph of an empty working folder."""
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow_api = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(configfiles=list(configfiles)),
            snakefile=ROOT / "Snakefile",
            workdir=tmp_path,
        )
        dag_api = workflow_api.dag(DAGSettings())
        dag_api.execute_workflow(executor="dryrun")
        jobs = list(workflow_api._workflow.dag.jobs)
    runs = [job for job in jobs if job.rule.name.startswith("run_")]
    assert all(job.rule.name == f"run_{job.params.method}" for job in runs)
    return [
        Run(job.wildcards.task, job.wildcards.dataset, job.params.method, int(job.wildcards.seed))
        for job in runs
    ]


@pytest.mark.parametrize(
    "files", [[], ["demo.yaml"], ["sensitivity.yaml"]], ids=["paper", "demo", "sensitivity"]
)
def test_every_declared_run_is_planned_once(tmp_path, files):
    config = load_yaml(WORKFLOW / "config.yaml", "config")
    for file in files:
        demo = load_yaml(WORKFLOW / file, "config")
        config = config | demo | {"select": config["select"] | demo["select"]}
    declared = load_plan(config).runs
    found = planned(tmp_path, *(WORKFLOW / file for file in files))
    assert sorted(found) == sorted(declared)
    assert len(found) == len(set(found)) > 0


def test_the_paper_is_planned_at_its_own_scale():
    plan = load_plan(load_yaml(WORKFLOW / "config.yaml", "config"))
    params = plan.params("scmamba2", "integration", "pbmc10k")
    assert (params["d_model"], params["n_layers"], params["epochs"]) == (1536, 36, 30)
    assert plan.changed_params("scmamba2", "integration", "pbmc10k") == {}
    assert len(plan.seeds) == 10
