# SC-MAMBA2, reproduced: snakemake --cores all --use-conda
# Data walks one way: fetch -> tidy -> prepare -> run_method -> score -> judge -> tables -> page; figures follow from score.

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
include: "workflow/rules/audits.smk"
include: "workflow/rules/report.smk"


report: str(ROOT / "workflow/report/workflow.rst")


rule all:
    default_target: True
    input:
        # Snakemake does not make a lost file again if what follows from it is there. So the records are asked
        # for by name: one that was deleted (make retry) is made again, and all that follows from it.
        records_of_plan(),
        "<results>/tables/summary.txt",
        "<results>/claims.csv",
        "<results>/sensitivity.csv",
        "<results>/costs.csv",
        "<results>/audits.csv",
        "<results>/index.html",
        figures_of_plan(),


onsuccess:
    show_summary()


onerror:
    show_failure()
