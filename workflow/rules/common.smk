# What all rules share: the checked plan and the words of a command.

import json
import os
import shlex

from snakemake.exceptions import WorkflowError

from workflow.fetching.addresses import addresses
from workflow.declarations import DeclarationError, load_plan, load_yaml, script_of
from workflow.tasks import NAMES as TASKS

try:
    PLAN = load_plan(config, workflow.configfiles)
except DeclarationError as error:
    raise WorkflowError(str(error))

EFFICIENCY = config.get("efficiency") or {}  # empty: the task is not run
EFFICIENCY = EFFICIENCY if EFFICIENCY.get("models") else {}
MEASURED = ["<results>/efficiency/measurements.json"] if EFFICIENCY else []
RESULTS = Path(config["pathvars"]["results"])
# The command that makes this selection again, for the report: the files that were laid over config.yaml.
LAID_OVER = [
    os.path.relpath(path, ROOT)
    for path in workflow.configfiles
    if Path(path).resolve() != ROOT / "workflow/config.yaml"
]
CALL = " ".join(
    ["snakemake --cores all", *(["--configfile", *LAID_OVER] if LAID_OVER else [])]
)
# What every job finds in its environment. Steps and methods run as modules from the repository's root,
# wherever the working folder is, and Snakemake unsets PYTHONPATH in conda jobs. None of this stands among a
# rule's params, because a change of params runs a job again, and another folder for downloads or another way
# to treat failures changes no result. The warning filter is for louvain, which scanpy imports and which warns
# of its own use of setuptools.
ENVIRONMENT = {
    "PYTHONPATH": ROOT,
    "PYTHONWARNINGS": "ignore::UserWarning:louvain",
    "SCMAMBA2_ON_FAILURE": config["on_failure"],
    "SCMAMBA2_DOWNLOADS": config.get("downloads")
    or os.environ.get("SCMAMBA2_DOWNLOADS", ""),
}
EXPORTS = " ".join(
    f"{name}={shlex.quote(str(value))}" for name, value in ENVIRONMENT.items()
)
shell.prefix(f"set -euo pipefail; export {EXPORTS}; ")


wildcard_constraints:
    task="|".join(TASKS),
    dataset="|".join(PLAN.datasets),
    method="|".join(PLAN.methods),
    seed=r"\d+",


def code_of(*packages):
    """The files of packages of this repository: editing one runs again what they compute."""
    return sorted(path for name in packages for path in (ROOT / name).rglob("*.py"))


def recipe_file(wildcards):
    """The recipe of a dataset: editing it makes the dataset tidy again."""
    recipe = PLAN.datasets[wildcards.dataset].get("recipe", "columns")
    return ROOT / f"workflow/recipes/{recipe}.py"


def task_files(wildcards):
    """The code that parts a dataset for a task: editing it prepares the dataset again."""
    return [ROOT / f"workflow/tasks/{name}.py" for name in (wildcards.task, "genes")]


def sources_of(wildcards):
    """Addresses and checksums of a dataset: changing them fetches it again."""
    return json.dumps(PLAN.datasets[wildcards.dataset]["sources"], sort_keys=True)


def local_files(wildcards):
    """Local files of a dataset that are there: editing one fetches the dataset again."""
    sources = PLAN.datasets[wildcards.dataset]["sources"].values()
    urls = [address.url for source in sources for address in addresses(source)]
    paths = [
        ROOT / url.removeprefix("file:") for url in urls if url.startswith("file:")
    ]
    return [path for path in paths if path.is_file()]


def entry_of(wildcards):
    """What a recipe and its check read of a declaration: changing it makes the dataset tidy again."""
    entry = PLAN.datasets[wildcards.dataset]
    keys = ("recipe", "obs", "var", "values", "options", "expect")
    return json.dumps({key: entry.get(key) for key in keys}, sort_keys=True)


def settings_of(wildcards):
    """Settings of a dataset for a task: changing them prepares the dataset again."""
    settings = PLAN.datasets[wildcards.dataset]["tasks"][wildcards.task]
    return json.dumps(settings, sort_keys=True)


def words_of_plan(wildcards):
    """Titles and notes that tables and figures show: changing one writes them again."""
    words = [
        {
            name: {key: entry.get(key) for key in ("title", "kind", "labels", "note")}
            for name, entry in table.items()
        }
        for table in (PLAN.datasets, PLAN.methods)
    ]
    return json.dumps(words, sort_keys=True)


def run_params(method):
    """Parameters of a run, as a function of its wildcards."""

    def params(wildcards):
        return json.dumps(PLAN.params(method, wildcards.task, wildcards.dataset))

    return params


def run_changed(method):
    """Declared values of the parameters that the configuration changed."""

    def changed(wildcards):
        return json.dumps(
            PLAN.changed_params(method, wildcards.task, wildcards.dataset)
        )

    return changed


def fetched_for(method):
    """Records of the files that a run starts from, as a function of its wildcards."""

    def fetched(wildcards):
        names = PLAN.files(method, wildcards.task, wildcards.dataset)
        return expand("<results>/data/{dataset}/fetch.json", dataset=names)

    return fetched


def tuned_for(method):
    """Record of the tuning of a method, if there is any, as a function of the wildcards of a run."""

    def tuned(wildcards):
        if not PLAN.space(method, wildcards.task):
            return []
        return (
            f"<results>/tuning/{wildcards.task}/{wildcards.dataset}/{method}/tuned.json"
        )

    return tuned


def runs_of(wildcards):
    """Records of all seeds of a method on a dataset."""
    return expand(
        "<results>/runs/{task}/{dataset}/{method}/{seed}/run.json",
        task=wildcards.task,
        dataset=wildcards.dataset,
        method=wildcards.method,
        seed=PLAN.seeds,
    )


def scores_of_dataset(wildcards):
    """Scores of every method on one dataset, but for variants of defects and conflicts: figures show none."""
    methods = PLAN.methods_for(wildcards.task)
    return expand(
        "<results>/scores/{task}/{dataset}/{method}.parquet",
        task=wildcards.task,
        dataset=wildcards.dataset,
        method=[name for name in methods if not PLAN.methods[name].get("variant")],
    )


def scores_of_annotation(wildcards):
    """Scores of every method that annotates on one dataset."""
    return expand(
        "<results>/scores/annotation/{dataset}/{method}.parquet",
        dataset=wildcards.dataset,
        method=PLAN.methods_for("annotation"),
    )


def units_of_annotation(wildcards):
    """The predictions of their cells, which lie beside the scores."""
    scores = scores_of_annotation(wildcards)
    return [path.removesuffix(".parquet") + ".units.parquet" for path in scores]


def scores_of_plan(wildcards):
    """Scores of every method on every dataset."""
    return [
        f"<results>/scores/{task}/{dataset}/{method}.parquet"
        for task, dataset in PLAN.pairs
        for method in PLAN.methods_for(task)
    ]


def fetched_of_plan():
    """Record of the files of everything that is to be downloaded."""
    return expand("<results>/data/{dataset}/fetch.json", dataset=PLAN.to_download)


def prepared_of_plan():
    """Record of every dataset that is to be prepared, and of the selected ones for each task."""
    tidy = expand("<results>/data/{dataset}/tidy.json", dataset=PLAN.to_prepare)
    return [*tidy, *prepared_of_selection(PLAN.to_prepare)]


def prepared_of_selection(datasets):
    """Record of every selected dataset that is among these, prepared for each task."""
    return [
        f"<results>/data/{dataset}/{task}/prepared.json"
        for task, dataset in PLAN.pairs
        if dataset in datasets
    ]


def records_of_plan():
    """Every record of the selection: of files, of prepared datasets and of runs."""
    files = expand(
        "<results>/data/{dataset}/{record}.json",
        dataset=PLAN.config["select"]["datasets"],
        record=["fetch", "tidy"],
    )
    runs = [
        f"<results>/runs/{run.task}/{run.dataset}/{run.method}/{run.seed}/run.json"
        for run in PLAN.runs
    ]
    return [*files, *prepared_of_selection(PLAN.datasets), *runs]


def facts_of_claims():
    """What was found in the datasets whose counts the paper gives, where they are prepared."""
    claims = load_yaml(ROOT / "workflow/claims.yaml", "claims")
    paths = [
        RESULTS / f"data/{claim['dataset']}/tidy.json"
        for claim in claims
        if "counts" in claim
    ]
    return [path for path in paths if path.is_file()]


def in_paper(wildcards):
    """Whether the dataset is the paper's own."""
    return PLAN.datasets[wildcards.dataset]["in_paper"]


def reported_table(stem, caption, **where):
    """A table of the report, as the page that people read."""
    return report(
        f"<results>/tables/{stem}.html",
        caption=str(ROOT / f"workflow/report/{caption}.rst"),
        **where,
    )


def tables_of_plan():
    """Every table of the selection."""
    tables = [
        reported_table(
            f"{task}_{dataset}",
            "table",
            category=task,
            subcategory=dataset,
            labels={"what": "results", "form": "table"},
        )
        for task, dataset in PLAN.pairs
    ]
    tables += [
        reported_table(
            f"headline_{task}",
            "headline_table",
            category=task,
            labels={"what": "methods on datasets", "form": "table"},
        )
        for task in dict.fromkeys(task for task, _ in PLAN.pairs)
    ]
    if EFFICIENCY:
        labels = {"what": "time and memory against length", "form": "table"}
        tables.append(
            reported_table(
                "efficiency", "efficiency", category="efficiency", labels=labels
            )
        )
    labels = {"what": "verdicts", "form": "table"}
    return [
        *tables,
        reported_table("claims", "claims", category="claims", labels=labels),
    ]


def ranks_figure(task):
    """The figure of ranks of a task."""
    return report(
        f"<results>/figures/{task}_ranks.png",
        caption=str(ROOT / "workflow/report/ranks.rst"),
        category=task,
        labels={"what": "ranks across data sets", "form": "figure"},
    )


def ranks_of_plan():
    """The figure of ranks of each task."""
    return [ranks_figure(task) for task in dict.fromkeys(t for t, _ in PLAN.pairs)]


def figures_of_plan():
    """Every figure of the selection."""
    drawn = {task: ["cells", "headline", "epochs", "cost"] for task in TASKS}
    drawn["annotation"].append("confusion")
    figures = [
        f"<results>/figures/{task}_{dataset}_{figure}.png"
        for task, dataset in PLAN.pairs
        for figure in drawn[task]
    ]
    figures += ["<results>/figures/forest.png", *ranks_of_plan()]
    return figures + (["<results>/figures/efficiency.png"] if EFFICIENCY else [])


def inputs_of_page():
    """What the page shows: the tables and figures of the selection, and the registers it prints."""
    registers = [ROOT / f"workflow/{name}.yaml" for name in ("defects", "conflicts")]
    return [
        "<results>/rows.parquet",
        "<results>/runs.csv",
        "<results>/summary.csv",
        "<results>/claims.csv",
        "<results>/sensitivity.csv",
        "<results>/costs.csv",
        "<results>/audits.csv",
        "<results>/room.csv",
        "<results>/tables/summary.txt",
        *figures_of_plan(),
        *MEASURED,
        *registers,
    ]


def show_summary():
    """Print the results table and where to look, unless this call made something else."""
    path = RESULTS / "tables/summary.txt"
    if path.exists():
        print(path.read_text(), file=sys.stderr)


def show_failure():
    """Say where the logs of failed steps are."""
    print(
        f"A step failed. Its log lies under {RESULTS}/logs or beside its run.json.",
        file=sys.stderr,
    )
