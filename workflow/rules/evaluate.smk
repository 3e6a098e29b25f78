# score -> judge -> tables, and score -> figures


rule score:
    """Score all seeds of a method on a dataset: one row per run, metric and unit."""
    input:
        prepared="<results>/data/{dataset}/{task}/prepared.json",
        runs=runs_of,
        code=[
            ROOT / "workflow/steps/score.py",
            ROOT / "workflow/probes.py",
            ROOT / "workflow/metrics/integration.py",
            ROOT / "workflow/metrics/annotation.py",
        ],
    output:
        rows="<results>/scores/{task}/{dataset}/{method}.parquet",
        units="<results>/scores/{task}/{dataset}/{method}.units.parquet",
        records="<results>/scores/{task}/{dataset}/{method}.json",
    log:
        "<results>/logs/score/{task}_{dataset}_{method}.log",
    conda:
        "../../envs/bench.yaml"
    resources:
        mem_mb=16000,
        runtime=120,
    params:
        in_paper=in_paper,
        cache=RESULTS / "cache",
    shell:
        "python -m workflow.steps.score --prepared {input.prepared} --runs {input.runs}"
        " --in-paper {params.in_paper} --rows {output.rows} --units {output.units} --records {output.records}"
        " --cache {params.cache:q} > {log} 2>&1"


rule judge:
    """Gather all rows, summarise the methods and give each claim its verdict."""
    input:
        scores=scores_of_plan,
        efficiency=MEASURED,
        facts=facts_of_claims(),
        claims=ROOT / "workflow/claims.yaml",
        code=[
            ROOT / "workflow/verdicts.py",
            ROOT / "workflow/comparisons.py",
            ROOT / "workflow/statistics.py",
            ROOT / "workflow/efficiency/analysis.py",
            ROOT / "workflow/steps/judge.py",
        ],
    output:
        rows="<results>/rows.parquet",
        runs="<results>/runs.csv",
        summary="<results>/summary.csv",
        claims="<results>/claims.csv",
    log:
        "<results>/logs/judge.log",
    conda:
        "../../envs/bench.yaml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        call=CALL,
    shell:
        "python -m workflow.steps.judge --scores {input.scores} --facts {input.facts}"
        " --efficiency {input.efficiency} --call {params.call:q} --rows {output.rows} --runs {output.runs}"
        " --summary {output.summary} --verdicts {output.claims} > {log} 2>&1"


rule tables:
    """Write the tables as CSV, Markdown and HTML, and the summary that ends a run."""
    input:
        scores=scores_of_plan,
        efficiency=MEASURED,
        claims="<results>/claims.csv",
        summary="<results>/summary.csv",
        code=[
            ROOT / "workflow/steps/tables.py",
            ROOT / "workflow/present.py",
            ROOT / "workflow/headline.py",
            ROOT / "workflow/html_tables.py",
            ROOT / "workflow/gate.py",
        ],
    output:
        "<results>/tables/summary.txt",
        tables_of_plan(),
    log:
        "<results>/logs/tables.log",
    localrule: True
    conda:
        "../../envs/bench.yaml"
    params:
        results=RESULTS,
        words=words_of_plan,
    shell:
        "python -m workflow.steps.tables --scores {input.scores} --claims {input.claims}"
        " --summary {input.summary} --efficiency {input.efficiency} --results {params.results:q}"
        " > {log} 2>&1"


rule figures:
    """Draw the cells of every method, and the headline metric with every seed."""
    input:
        scores=scores_of_dataset,
        prepared="<results>/data/{dataset}/{task}/prepared.json",
        code=[ROOT / "workflow/steps/figures.py", ROOT / "workflow/present.py"],
    output:
        cells=report(
            "<results>/figures/{task}_{dataset}_cells.png",
            caption="../report/cells.rst",
            category="{task}",
            subcategory="{dataset}",
            labels={"what": "cells (UMAP)", "form": "figure"},
        ),
        headline=report(
            "<results>/figures/{task}_{dataset}_headline.png",
            caption="../report/headline.rst",
            category="{task}",
            subcategory="{dataset}",
            labels={"what": "headline, every seed", "form": "figure"},
        ),
    log:
        "<results>/logs/figures/{task}_{dataset}.log",
    conda:
        "../../envs/bench.yaml"
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        runs=str(RESULTS / "runs/{task}/{dataset}"),
        words=words_of_plan,
    shell:
        "python -m workflow.steps.figures --scores {input.scores} --prepared {input.prepared}"
        " --runs-folder {params.runs} --cells {output.cells} --headline {output.headline} > {log} 2>&1"


rule sensitivity:
    """Say what modes, defects, conflicts, metrics, epochs and gene orders do to the numbers."""
    input:
        scores=scores_of_plan,
        defects=ROOT / "workflow/defects.yaml",
        conflicts=ROOT / "workflow/conflicts.yaml",
        code=[
            ROOT / "workflow/steps/sensitivity.py",
            ROOT / "workflow/sensitivity.py",
            ROOT / "workflow/statistics.py",
        ],
    output:
        "<results>/sensitivity.csv",
    log:
        "<results>/logs/sensitivity.log",
    localrule: True
    conda:
        "../../envs/bench.yaml"
    params:
        words=words_of_plan,
    shell:
        "python -m workflow.steps.sensitivity --scores {input.scores} --table {output} > {log} 2>&1"
