# score -> judge -> tables and overview; score -> figures, confusion and costs


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
    """Draw one dataset: the cells of every method, every seed, every epoch, and cost against quality."""
    input:
        scores=scores_of_dataset,
        prepared="<results>/data/{dataset}/{task}/prepared.json",
        code=[
            ROOT / "workflow/steps/figures.py",
            ROOT / "workflow/drawing.py",
            ROOT / "workflow/present.py",
        ],
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
        epochs=report(
            "<results>/figures/{task}_{dataset}_epochs.png",
            caption="../report/epochs.rst",
            category="{task}",
            subcategory="{dataset}",
            labels={"what": "epochs: validation and test", "form": "figure"},
        ),
        cost=report(
            "<results>/figures/{task}_{dataset}_cost.png",
            caption="../report/cost.rst",
            category="{task}",
            subcategory="{dataset}",
            labels={"what": "cost and quality", "form": "figure"},
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
        " --runs-folder {params.runs} --cells {output.cells} --headline {output.headline}"
        " --epochs {output.epochs} --cost {output.cost} > {log} 2>&1"


rule confusion:
    """Draw which cell types are taken for which."""
    input:
        scores=scores_of_annotation,
        units=units_of_annotation,
        code=[ROOT / "workflow/steps/confusion.py", ROOT / "workflow/drawing.py"],
    output:
        report(
            "<results>/figures/annotation_{dataset}_confusion.png",
            caption="../report/confusion.rst",
            category="annotation",
            subcategory="{dataset}",
            labels={"what": "confusion matrices", "form": "figure"},
        ),
    log:
        "<results>/logs/figures/annotation_{dataset}_confusion.log",
    localrule: True
    conda:
        "../../envs/bench.yaml"
    params:
        words=words_of_plan,
    shell:
        "python -m workflow.steps.confusion --scores {input.scores} --figure {output} > {log} 2>&1"


rule overview:
    """Draw what spans data sets: the claims, and the ranks of the methods in each task."""
    input:
        rows="<results>/rows.parquet",
        runs="<results>/runs.csv",
        claims="<results>/claims.csv",
        code=[ROOT / "workflow/steps/overview.py", ROOT / "workflow/drawing.py"],
    output:
        forest=report(
            "<results>/figures/forest.png",
            caption="../report/forest.rst",
            category="claims",
            labels={"what": "differences and verdicts", "form": "figure"},
        ),
        ranks=ranks_of_plan(),
    log:
        "<results>/logs/figures/overview.log",
    localrule: True
    conda:
        "../../envs/bench.yaml"
    params:
        words=words_of_plan,
    shell:
        "python -m workflow.steps.overview --rows {input.rows} --runs {input.runs} --claims {input.claims}"
        " --forest {output.forest} --ranks {output.ranks} > {log} 2>&1"


rule costs:
    """Say what a run of each method costs, and what a hundredth of the headline metric costs."""
    input:
        scores=scores_of_plan,
        code=[ROOT / "workflow/steps/costs.py", ROOT / "workflow/costs.py"],
    output:
        "<results>/costs.csv",
    log:
        "<results>/logs/costs.log",
    localrule: True
    conda:
        "../../envs/bench.yaml"
    params:
        runs=str(RESULTS / "runs"),
        cost=json.dumps(config["cost"], sort_keys=True),
        words=words_of_plan,
    shell:
        "python -m workflow.steps.costs --scores {input.scores} --runs-folder {params.runs}"
        " --cost {params.cost:q} --costs {output} > {log} 2>&1"


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
