# run_method: one named rule per method, so that --list-rules, --set-resources, --until, the rule graph and
# the report's statistics show methods by name.


for method, entry in PLAN.methods.items():

    rule:
        name:
            f"run_{method}"
        input:
            prepared="<results>/data/{dataset}/{task}/prepared.json",
            script=script_of(method, entry),
            code=code_of(*entry.get("uses", [])),
            fetched=fetched_for(method),
            tuned=tuned_for(method),
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
            " --fetched {input.fetched} --tuned {input.tuned}"
            " --threads {threads} --gpu {resources.gpu} --limit {resources.limit_s}"


# tune_<method>: only where the configuration gives trials, for the methods that list values to try.


for method, entry in PLAN.methods.items():
    if PLAN.space(method, "annotation"):

        rule:
            name:
                f"tune_{method}"
            input:
                prepared="<results>/data/{dataset}/{task}/prepared.json",
                script=script_of(method, entry),
                code=code_of(*entry.get("uses", [])),
                fetched=fetched_for(method),
            output:
                f"<results>/tuning/{{task}}/{{dataset}}/{method}/tuned.json",
            log:
                f"<results>/logs/tune/{{task}}_{{dataset}}_{method}.log",
            conda:
                f"../../envs/{entry['env']}.yaml"
            threads: PLAN.limit(method, "threads")
            resources:
                gpu=PLAN.limit(method, "gpu"),
                mem_mb=PLAN.limit(method, "mem_mb"),
                limit_s=int(PLAN.limit(method, "runtime") * 60),
                runtime=(int(PLAN.limit(method, "runtime")) + 2) * PLAN.trials,
            params:
                **config["tuning"],
                method=method,
                script=entry.get("script", method),
                kind=entry["kind"],
                mode=entry.get("mode", "repaired"),
                packages=",".join(entry["packages"]),
                params=run_params(method),
                space=json.dumps(PLAN.space(method, "annotation")),
            shell:
                "python -m workflow.steps.tune --task {wildcards.task}"
                " --dataset {wildcards.dataset} --method {params.method}"
                " --prepared {input.prepared} --record {output} --params {params.params:q}"
                " --space {params.space:q} --trials {params.trials}"
                " --fraction {params.query_fraction} --seed {params.seed}"
                " -- --script {params.script} --kind {params.kind} --mode {params.mode}"
                " --packages={params.packages:q} --fetched {input.fetched}"
                " --threads {threads} --gpu {resources.gpu} --limit {resources.limit_s}"
                " 2> >(tee {log} >&2)"
