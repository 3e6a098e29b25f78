# fetch -> prepare


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
        entry=entry_of,
    shell:
        "python -m workflow.steps.prepare --dataset {wildcards.dataset}"
        " --task {wildcards.task} --fetched {input.fetched} --record {output}"
        " 2> >(tee {log} >&2)"
