# Everything that was computed -> one page, and the release gate


rule page:
    """Put the claims and everything they rest on into one page that needs no other file."""
    input:
        inputs_of_page(),
        code=[
            *sorted((ROOT / "workflow/report").glob("*.rst")),
            ROOT / "workflow/steps/page.py",
            ROOT / "workflow/steps/tables.py",
            ROOT / "workflow/headline.py",
            ROOT / "workflow/html_tables.py",
            ROOT / "workflow/report/page.html.j2",
            ROOT / "workflow/report/page.css",
        ],
    output:
        report(
            "<results>/index.html",
            caption="../report/page.rst",
            category="claims",
            labels={"what": "the whole report", "form": "page"},
        ),
    log:
        "<results>/logs/page.log",
    localrule: True
    conda:
        "../../envs/bench.yaml"
    params:
        results=RESULTS,
        words=words_of_plan,
    shell:
        "python -m workflow.steps.page --results {params.results:q} --page {output} > {log} 2>&1"


rule gate:
    """Fail if a headline table lacks a row that it must have."""
    input:
        "<results>/summary.csv",
        "<results>/runs.csv",
        code=[
            ROOT / "workflow/steps/gate.py",
            ROOT / "workflow/gate.py",
            *(ROOT / f"workflow/tasks/{task}.py" for task in TASKS),
        ],
    output:
        "<results>/gate.txt",
    log:
        "<results>/logs/gate.log",
    localrule: True
    conda:
        "../../envs/bench.yaml"
    params:
        results=RESULTS,
    shell:
        "python -m workflow.steps.gate --results {params.results:q} --record {output}"
        " 2> >(tee {log} >&2)"
