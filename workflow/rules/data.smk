# fetch -> prepare


def recipe_file(wildcards):
    """The recipe of a dataset: editing it prepares the dataset again."""
    recipe = PLAN.datasets[wildcards.dataset].get("recipe")
    return ROOT / (f"workflow/recipes/{recipe}.py" if recipe else "workflow/tidy.py")


def entry_of(wildcards):
    """The declaration of a dataset: changing it prepares the dataset again."""
    return json.dumps(PLAN.datasets[wildcards.dataset], sort_keys=True)


rule fetch:
    """Bring the files of a dataset here and verify them."""
    output:
        "<results>/data/{dataset}/fetch.json",
    log:
        "<results>/logs/fetch/{dataset}.log",
    conda:
        "../../envs/bench.yaml"
    localrule: True
    params:
        python=PYTHON,
        downloads=config.get("downloads") or "",
        on_failure=ON_FAILURE,
    shell:
        "{params.python} -m workflow.steps.fetch --dataset {wildcards.dataset} --record {output}"
        " --downloads={params.downloads:q} --on-failure {params.on_failure} 2> >(tee {log} >&2)"


rule prepare:
    """Make a dataset tidy, check it, and part it into input and solution."""
    input:
        fetched="<results>/data/{dataset}/fetch.json",
        code=[ROOT / "workflow/steps/prepare.py", ROOT / "workflow/tidy.py"],
        recipe=recipe_file,
    output:
        "<results>/data/{dataset}/{task}/prepared.json",
    log:
        "<results>/logs/prepare/{dataset}_{task}.log",
    conda:
        "../../envs/bench.yaml"
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        python=PYTHON,
        on_failure=ON_FAILURE,
        entry=entry_of,
    shell:
        "{params.python} -m workflow.steps.prepare --dataset {wildcards.dataset}"
        " --task {wildcards.task} --fetched {input.fetched} --record {output}"
        " --on-failure {params.on_failure} 2> >(tee {log} >&2)"
