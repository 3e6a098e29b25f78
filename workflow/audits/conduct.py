"""Audits of how the runs were conducted: streams, vocabulary, tuning, checksums."""

from __future__ import annotations

from collections.abc import Iterator

from workflow.audits import PASS, WARN, Case, Finding, absent, audit, verdict

#: Share of the genes that a vocabulary may lack before a reader must know.
MISSING_GENES = 0.05


@audit("L4", "What chose the epoch, and what the seed changes")
def selection(case: Case) -> Iterator[Finding]:
    inputs = case.ok["input_sha256"].nunique() if "input_sha256" in case.ok else 0
    if len(case.ok):
        sentence = f"{len(case.ok)} runs of {case.ok['seed'].nunique()} seeds read {inputs} input"
        sentence += (
            "s: runs were not given the same data."
            if inputs != 1
            else ": the seed changed neither split nor genes."
        )
        yield Finding(verdict(inputs == 1), inputs, sentence)
    for method, runs in case.trained().items():
        first = runs.iloc[0]
        # a parameter of ours; a rival that has no other way says it in its info
        params, title = (first["info"] or {}) | first["params"], case.title(method)
        kept = sorted({info.get("selected_epoch") for info in runs["info"]} - {None})
        epochs = max(len(info["history"]) for info in runs["info"])
        which = f"kept epoch {', '.join(map(str, kept)) or '?'} of {epochs}"
        criterion = params.get("criterion", "loss")
        by = "accuracy" if criterion == "accuracy" else "loss"
        if "keep" not in params:
            yield absent(f"{title} does not say how it chose an epoch.")._replace(method=method)
        elif params["keep"] == "last":
            yield Finding(PASS, 0.0, f"{title} {which}, the last: no validation cell had a say.", method)
        elif criterion != "loss" and criterion not in params.get("losses", [criterion]):
            sentence = (
                f"{title} {which} by the validation loss of {criterion}, a term that it was not trained on."
            )
            yield Finding(WARN, 1.0, sentence, method)
        elif case.task == "integration":
            sentence = f"{title} {which} by the validation {by} of cells that are scored too, without labels."
            yield Finding(WARN, 1.0, sentence, method)
        else:
            sentence = f"{title} {which} by the validation {by} of reference cells; no query cell had a say."
            yield Finding(PASS, 1.0, sentence, method)


@audit("L8", "Genes that the vocabulary lacks")
def vocabulary(case: Case) -> Iterator[Finding]:
    for method, runs in case.ok.groupby("method", sort=False):
        covered = [info["gene_coverage"] for info in runs["info"] if "gene_coverage" in (info or {})]
        if covered:
            missing = 1 - min(covered)
            sentence = (
                f"The vocabulary of {case.title(str(method))} lacks {100 * missing:.1f} % of the genes that "
            )
            sentence += "it is given."
            yield Finding(verdict(missing <= MISSING_GENES), missing, sentence, str(method))
    if not any("gene_coverage" in (info or {}) for info in case.ok["info"]):
        yield absent("No method has a vocabulary of genes, or none said how much of it is used.")


@audit("L9", "Pairing with control cells")
def pairing(case: Case) -> Finding:
    return absent("No perturbed cell is paired with a control here.")


@audit("L14", "Predictions that are all alike")
def collapse(case: Case) -> Finding:
    return absent(
        "No perturbation is predicted here, so there is no variance between perturbations to compare."
    )


@audit("L17", "Tuning of one method and not of another")
def tuning(case: Case) -> Iterator[Finding]:
    if case.runs.empty:
        return
    tuned, changed = {}, {}
    for method, runs in case.runs.groupby("method", sort=False):
        params = runs.iloc[0]["params"] or {}
        trials = runs.iloc[0].get("tuning_trials", 0)  # of the suite, equal for all that may be tuned
        tuned[method] = max([len(v) for v in params.values() if _is_grid(v)], default=1) * max(trials, 1)
        chosen = set(runs.iloc[0]["tuned_params"]) if trials else set()
        changed[method] = len(set(runs.iloc[0]["changed_params"] or {}) - chosen)
    grids = [f"{case.title(str(m))} tries {n} values" for m, n in tuned.items() if n > 1]
    moved = [f"{case.title(str(m))} has {n}" for m, n in changed.items() if n]
    sentence = f"Of {len(tuned)} methods, " + (", ".join(grids) if grids else "none tries several values")
    sentence += " of a parameter by itself; "
    sentence += (
        ", ".join(moved) + " parameters that the configuration changed"
        if moved
        else ("the configuration changed no parameter")
    )
    uneven = len(set(tuned.values())) > 1 or len({bool(n) for n in changed.values()}) > 1
    yield Finding(verdict(not uneven), len(grids) + len(moved), f"{sentence}; all others ran as declared.")


def _is_grid(value) -> bool:
    """Whether a parameter lists numbers to choose from."""
    return isinstance(value, list) and len(value) > 1 and all(type(v) in (int, float) for v in value)


@audit("L19", "Checksums of the files")
def checksums(case: Case) -> Finding:
    states = {name: found.get("hash", "unknown") for name, found in case.fetched.items()}
    for name, source in case.entry["sources"].items():
        declared = source.get("hash") or all(isinstance(u, dict) and u.get("hash") for u in source["urls"])
        states.setdefault(name, "declared, not fetched" if declared else "unknown")
    held = {
        "verified": "declared",
        "locked": "as in datasets.lock",
        "recorded": "recorded now in datasets.lock",
    }
    bad = [name for name, state in states.items() if state not in held]
    sentence = (
        f"{len(states) - len(bad)} of {len(states)} files have a checksum, so that a changed one is seen"
    )
    sentence += " (" + ", ".join(f"{n}: {held.get(s, s)}" for n, s in states.items()) + ")."
    return Finding(verdict(not bad), len(bad), sentence)
