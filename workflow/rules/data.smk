# fetch -> tidy -> prepare


rule fetch:
    """Bring the files of a dataset here and verify them."""
    input:
        local_files,
    output:
        "<results>/data/{dataset}/fetch.json",
    log:
        "<results>/logs/fetch/{dataset}.log",
    localrule: True
    conda:
        "../../envs/bench.yaml"
    params:
        sources=sources_of,
    shell:
        "python -m workflow.steps.fetch --dataset {wildcards.dataset} --record {output}"
        " 2> >(tee {log} >&2)"


rule tidy:
    """Make a dataset tidy by its recipe, and check it."""
    input:
        fetched="<results>/data/{dataset}/fetch.json",
        code=[
            ROOT / "workflow/steps/tidy.py",
            ROOT / "workflow/tidy.py",
            *sorted((ROOT / "workflow/recipes").glob("_*.py")),
        ],
        recipe=recipe_file,
    output:
        "<results>/data/{dataset}/tidy.json",
    log:
        "<results>/logs/tidy/{dataset}.log",
    conda:
        "../../envs/bench.yaml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        entry=entry_of,
    shell:
        "python -m workflow.steps.tidy --dataset {wildcards.dataset}"
        " --fetched {input.fetched} --record {output}"
        " 2> >(tee {log} >&2)"


rule prepare_task:
    """Part a tidy dataset into what methods see and what only scoring sees."""
    input:
        tidy="<results>/data/{dataset}/tidy.json",
        code=[
            ROOT / "workflow/steps/prepare.py",
            ROOT / "workflow/tidy.py",
            ROOT / "workflow/splits.py",
        ],
        task=task_files,
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
        task=settings_of,
    shell:
        "python -m workflow.steps.prepare --dataset {wildcards.dataset}"
        " --task {wildcards.task} --tidy {input.tidy} --record {output}"
        " 2> >(tee {log} >&2)"


rule download:
    """Bring the files of everything that `data` names, and say what could not be had."""
    input:
        fetched_of_plan(),
    log:
        "<results>/logs/download.log",
    localrule: True
    conda:
        "../../envs/bench.yaml"
    params:
        results=RESULTS,
    shell:
        "python -m workflow.steps.tell --results {params.results} {input}"
        " 2> >(tee {log} >&2)"


rule prepare:
    """Make everything that `data` names tidy, and say what could not be had."""
    input:
        prepared_of_plan(),
    log:
        "<results>/logs/prepare.log",
    localrule: True
    conda:
        "../../envs/bench.yaml"
    params:
        results=RESULTS,
    shell:
        "python -m workflow.steps.tell --results {params.results} {input}"
        " 2> >(tee {log} >&2)"
