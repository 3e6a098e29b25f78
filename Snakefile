# SC-MAMBA2, reproduced: snakemake --cores all --use-conda
# Data walks one way: fetch -> prepare -> run_method -> score -> judge -> tables and figures.

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")
ROOT = Path(workflow.basedir).resolve()
sys.path.insert(0, str(ROOT))


configfile: str(ROOT / "workflow/config.yaml")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/methods.smk"
include: "workflow/rules/efficiency.smk"
include: "workflow/rules/evaluate.smk"


report: str(ROOT / "workflow/report/workflow.rst")


rule all:
    default_target: True
    input:
        "<results>/tables/summary.txt",
        "<results>/claims.csv",
        figures_of_plan(),


rule download:
    input:
        expand(
            "<results>/data/{dataset}/fetch.json",
            dataset=PLAN.config["select"]["datasets"],
        ),
    localrule: True


onsuccess:
    show_summary()


onerror:
    show_failure()
