# What all rules share: the checked plan and the words of a command.

import json
import shlex

from snakemake.exceptions import WorkflowError

from workflow.declarations import DeclarationError, load_plan
from workflow.tasks import NAMES as TASKS

try:
    PLAN = load_plan(config, workflow.configfiles)
except DeclarationError as error:
    raise WorkflowError(str(error))

RESULTS = Path(config["pathvars"]["results"])
# Steps and methods are run as modules from the repository's root, wherever the working folder is.
# Snakemake unsets PYTHONPATH in conda jobs, so it is set inside the command.
PYTHON = f"PYTHONPATH={shlex.quote(str(ROOT))} python"
ON_FAILURE = config["on_failure"]


wildcard_constraints:
    task="|".join(TASKS),
    dataset="|".join(PLAN.datasets),
    method="|".join(PLAN.methods),
    seed=r"\d+",


def figures_of_plan():
    """Every figure of the selection."""
    return [
        f"<results>/figures/{task}_{dataset}_{figure}.png"
        for task, dataset in PLAN.pairs
        for figure in ("cells", "headline")
    ]


def show_summary():
    """Print the results table and where to look, unless this call made something else."""
    path = RESULTS / "tables/summary.txt"
    if path.exists():
        print(path.read_text(), file=sys.stderr)


def show_failure():
    """Say where the logs of failed steps are."""
    print(f"A step failed. Its log lies under {RESULTS}/logs or beside its run.json.", file=sys.stderr)
