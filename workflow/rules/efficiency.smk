# efficiency -> judge, tables, efficiency_figure; only if the configuration has the task.

import math

if EFFICIENCY:
    MEASUREMENTS = math.prod(
        len(EFFICIENCY[key]) for key in ("models", "passes", "lengths")
    )

    rule efficiency:
        """Time the encoders and measure their memory at growing lengths."""
        input:
            ROOT / "workflow/steps/efficiency.py",
            ROOT / "workflow/efficiency/worker.py",
            ROOT / "workflow/efficiency/models.py",
            code_of("scmamba2"),
        output:
            "<results>/efficiency/measurements.json",
        log:
            "<results>/logs/efficiency.log",
        conda:
            "../../envs/bench.yaml"
        threads: EFFICIENCY["threads"]
        resources:
            gpu=EFFICIENCY["gpu"],
            mem_mb=int(EFFICIENCY["limit_mb"]) + 2000,
            # minutes: a first call and the repeats each end soon after the limit
            runtime=MEASUREMENTS * int(EFFICIENCY["limit_s"]) * 2 // 60 + 10,
        params:
            settings=json.dumps(EFFICIENCY, sort_keys=True),
        shell:
            "python -m workflow.steps.efficiency --settings {params.settings:q}"
            " --threads {threads} --gpu {resources.gpu} --record {output} > {log} 2>&1"

    rule efficiency_figure:
        """Draw time and memory against the length."""
        input:
            record="<results>/efficiency/measurements.json",
            code=[
                ROOT / "workflow/steps/efficiency_figure.py",
                ROOT / "workflow/efficiency/analysis.py",
            ],
        output:
            report(
                "<results>/figures/efficiency.png",
                caption="../report/efficiency.rst",
                category="efficiency",
                labels={"what": "time and memory against length", "form": "figure"},
            ),
        log:
            "<results>/logs/figures/efficiency.log",
        localrule: True
        conda:
            "../../envs/bench.yaml"
        shell:
            "python -m workflow.steps.efficiency_figure --record {input.record} --figure {output}"
            " > {log} 2>&1"
