# run_method: one named rule per method, so that --list-rules, --set-resources, --until, the rule graph and
# the report's statistics show methods by name.


for method, entry in PLAN.methods.items():

    rule:
        name:
            f"run_{method}"
        input:
            prepared="<results>/data/{dataset}/{task}/prepared.json",
            script=ROOT / f"baselines/{entry.get('script', method)}.py",
            code=code_of(*entry.get("uses", [])),
            fetched=fetched_for(method),
        output:
            f"<results>/runs/{{task}}/{{dataset}}/{method}/{{seed}}/run.json",
        log:
            f"<results>/runs/{{task}}/{{dataset}}/{method}/{{seed}}/log.txt",
        benchmark:
            f"<results>/runs/{{task}}/{{dataset}}/{method}/{{seed}}/benchmark.tsv"
        conda:
            f"../../envs/{entry['env']}.yaml"
        threads: PLAN.limit(method, "threads")
        resources:
            gpu=PLAN.limit(method, "gpu"),
            mem_mb=PLAN.limit(method, "mem_mb"),
            # The wrapper stops the method; the job gets two minutes more, to write the record.
            limit_s=int(PLAN.limit(method, "runtime") * 60),
            runtime=int(PLAN.limit(method, "runtime")) + 2,
        params:
            method=method,
            script=entry.get("script", method),
            kind=entry["kind"],
            mode=entry.get("mode", "repaired"),
            packages=",".join(entry["packages"]),
            params=run_params(method),
            changed=run_changed(method),
        shell:
            "python -m workflow.steps.run_method --task {wildcards.task}"
            " --dataset {wildcards.dataset} --method {params.method} --script {params.script}"
            " --kind {params.kind} --mode {params.mode} --seed {wildcards.seed}"
            " --prepared {input.prepared} --record {output} --log {log}"
            " --params {params.params:q} --changed {params.changed:q} --packages={params.packages:q}"
            " --fetched {input.fetched}"
            " --threads {threads} --gpu {resources.gpu} --limit {resources.limit_s}"
