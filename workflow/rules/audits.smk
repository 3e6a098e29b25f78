# score -> audit: what a reader must know before reading the numbers, and whether there is anything to do


rule audit:
    """Audit one task on one dataset, and measure what room it leaves to methods."""
    input:
        prepared="<results>/data/{dataset}/{task}/prepared.json",
        scores=scores_of_dataset,
        code=[
            ROOT / "workflow/steps/audit.py",
            ROOT / "workflow/room.py",
            *code_of("workflow/audits"),
        ],
    output:
        table="<results>/audits/{task}_{dataset}.csv",
        room="<results>/audits/{task}_{dataset}_room.json",
    log:
        "<results>/logs/audit/{task}_{dataset}.log",
    conda:
        "../../envs/bench.yaml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        words=words_of_plan,
    shell:
        "python -m workflow.steps.audit dataset --prepared {input.prepared} --scores {input.scores}"
        " --table {output.table} --room {output.room} > {log} 2>&1"


rule audits:
    """Put the audits and the room of all datasets together."""
    input:
        tables=[f"<results>/audits/{task}_{name}.csv" for task, name in PLAN.pairs],
        rooms=[f"<results>/audits/{task}_{name}_room.json" for task, name in PLAN.pairs],
    output:
        audits="<results>/audits.csv",
        room="<results>/room.csv",
    log:
        "<results>/logs/audits.log",
    localrule: True
    conda:
        "../../envs/bench.yaml"
    shell:
        "python -m workflow.steps.audit gather --tables {input.tables} --rooms {input.rooms}"
        " --audits {output.audits} --room {output.room} > {log} 2>&1"
