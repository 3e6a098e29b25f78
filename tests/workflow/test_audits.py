"""Audits: each on made-up cells and rows where the answer is known, both ways."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from support import ROOT, make_cells

from workflow import audits, tasks
from workflow.audits import Case, conduct, data, scores
from workflow.steps import audit as step
from workflow.tidy import log_normalize

TASKS = ("integration", "annotation")
METHODS = {
    "pca": {"title": "PCA", "kind": "trivial"},
    "random_embedding": {"title": "Random", "kind": "trivial"},
    "label_onehot": {"title": "Truth", "kind": "oracle"},
    "majority": {"title": "Majority", "kind": "trivial"},
    "ours": {"title": "Ours", "kind": "ours"},
    "rival": {"title": "Rival", "kind": "deep"},
    "ours_d13": {"title": "Ours, D-13", "kind": "ours", "variant": "D-13"},
}
PREPARED = {"highly_variable": {"flavor": "seurat_v3", "n_top": 30, "scope": "reference cells"}}


def row(method, value, *, seed=0, metric="accuracy", impl="sklearn", level="run", unit="", n=30, sha=None):
    return {
        "run_id": f"{method}/{seed}", "method": method, "method_kind": METHODS[method]["kind"], "seed": seed,
        "metric": metric, "metric_impl": impl, "unit_level": level, "unit_id": unit, "value": value,
        "n_units": n, "output_sha256": sha or f"{method}{seed}",
    }  # fmt: skip


def avg_bio(method, value, *, rule="scib-1.1.5", **changed):
    return row(method, value, metric="avg_bio", impl=rule, n=60, **changed)


def run(method, seed=0, *, status="ok", params=None, changed=None, info=None, sha="in"):
    return {
        "run_id": f"{method}/{seed}", "method": method, "seed": seed, "status": status, "info": info or {},
        "params": params or {}, "changed_params": changed or {}, "tuned_params": [], "tuning_trials": 0,
        "input_sha256": sha,
    }  # fmt: skip


def case(task="annotation", rows=(), runs=(), **changed) -> Case:
    """Synthetic cells of three types, prepared, with the rows and runs given."""
    cells = make_cells(60)
    cells.obs = cells.obs.rename(columns={"cell_type": "label"})
    del cells.layers["counts"]
    cells.layers["counts"] = cells.X.copy()
    log_normalize(cells)
    settings = {"n_top_genes": 40, "split": {"kind": "stratified", "seed": 0}}
    given, solution, _ = tasks.get(task).make_io(cells, settings)
    columns = list(row("ours", 0.0))
    return Case(
        **{
            "task": task,
            "dataset": "cells",
            "entry": {"sources": {"cells": {"urls": ["https://a.example/b"]}}},
            "methods": METHODS,
            "prepared": {"status": "ok", "reason": "", "n_vars": 20_000, "facts": PREPARED},
            "given": given,
            "solution": solution,
            "rows": pd.DataFrame(list(rows), columns=columns),
            "runs": pd.DataFrame(list(runs), columns=list(run("ours"))),
            "room": {"mixing_k15": 0.3, "shuffled_k15": 0.5, "shuffled_low_k15": 0.48},
        }
        | changed
    )


def one(findings) -> audits.Finding:
    """Return the only finding."""
    found = [findings] if isinstance(findings, audits.Finding) else list(findings)
    assert len(found) == 1, found
    return found[0]


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("task", TASKS)
def test_every_threat_has_a_line_and_every_sentence_ends(task, monkeypatch):
    monkeypatch.setattr(data, "N_PERMUTED", 2)
    table = audits.run_audits(case(task))
    assert list(table["code"].unique()) == [f"L{i}" for i in range(1, 20)] + [f"A{i}" for i in range(1, 8)]
    assert list(table.columns) == audits.COLUMNS
    assert set(table["result"]) <= {"pass", "warn", "not applicable"}
    assert table["sentence"].str.endswith(".").all()
    assert not table["sentence"].str.contains("nan|None").any()


def test_a_dataset_that_could_not_be_had_says_why_on_every_line():
    prepared = {"status": "no_data", "reason": "the server is gone"}
    table = audits.run_audits(case(prepared=prepared, given=None, solution=None))
    assert set(table["result"]) == {"not applicable"}
    assert table["sentence"].str.contains("the server is gone").all() and len(table) == 26


def test_variants_of_defects_are_not_audited_as_methods():
    rows = [avg_bio(m, 0.5, seed=s) for m in ("ours", "ours_d13") for s in range(5)]
    found = list(scores.seeds(case("integration", rows)))
    assert [finding.method for finding in found] == ["ours"]


# ---------------------------------------------------------------- data


def test_l1_warns_of_genes_that_others_chose_and_of_query_cells_in_the_choice():
    def first(*args, **changed):
        return next(iter(data.genes(case(*args, **changed)))).result

    assert first() == "pass"
    assert first(prepared=case().prepared | {"n_vars": 3000}) == "warn"
    facts = {"highly_variable": PREPARED["highly_variable"] | {"scope": "all cells"}}
    assert first(prepared=case().prepared | {"facts": facts}) == "warn"
    assert first("integration", prepared=case().prepared | {"facts": facts}) == "pass"


def test_l1_names_the_method_whose_genes_the_query_helped_to_choose():
    runs = [run("ours", params={"feature_scope": "all"}), run("rival", params={"feature_scope": "train"})]
    facts = {"highly_variable": PREPARED["highly_variable"] | {"shared_with_all_cells": 26}}
    found = list(data.genes(case(runs=runs, prepared=case().prepared | {"facts": facts})))
    assert [(f.method, f.result, f.value) for f in found] == [("", "pass", 20_000), ("ours", "warn", 4)]
    assert "4 of 30 are others" in found[1].sentence


def test_l5_finds_a_gene_set_in_two_splits_whichever_way_it_is_written():
    assert data.shared_gene_sets(["A+ctrl", "ctrl+A", "ctrl", "ctrl"], ["a", "b", "a", "b"]) == [
        frozenset("A")
    ]
    labels = (ROOT / "tests/recipes/norman_labels.tsv").read_text().splitlines()[1:]
    conditions = [line.split("\t")[0] for line in labels]
    assert len(conditions) > 200
    by_gene = ["test" if "FOXA1" in data.gene_set(c) else "train" for c in conditions]
    assert data.shared_gene_sets(conditions, by_gene) == []
    at_random = np.random.default_rng(0).choice(["train", "test"], len(conditions))
    twice = data.shared_gene_sets(conditions, at_random)
    assert all({"train", "test"} == {s for c, s in zip(conditions, at_random, strict=True)
                                     if data.gene_set(c) == t} for t in twice)  # fmt: skip
    perturbed = case()
    perturbed.given.obs["condition"] = "A+ctrl"
    assert data.gene_sets(perturbed).result == "warn"
    perturbed.given.obs["condition"] = np.where(perturbed.hidden, "A+B", "A+ctrl")
    assert data.gene_sets(perturbed).result == "pass"


@pytest.mark.parametrize("task", TASKS)
def test_l7_counts_cells_that_stand_on_both_sides(task):
    clean = case(task)
    assert next(iter(data.duplicates(clean))).value == 0
    side = clean.hidden if task == "annotation" else (clean.given.obs["batch"] == "b1").to_numpy()
    counts = clean.given.layers["counts"].tolil()
    here, there = np.flatnonzero(side)[:2], np.flatnonzero(~side)[0]
    counts[here[0]] = counts[there]
    counts[here[1]] = counts[there]
    clean.given.layers["counts"] = counts.tocsr()
    found = next(iter(data.duplicates(clean)))
    assert (found.result, found.value) == ("warn", 2 if task == "annotation" else 3)


def test_row_hashes_see_through_how_a_matrix_is_stored():
    dense = np.array([[1, 0, 2], [1, 0, 2], [2, 0, 1]], dtype=np.float32)
    plain = sp.csr_matrix(dense)
    values, genes, starts = [2.0, 1, 0, 1, 2, 2, 1], [2, 0, 1, 0, 2, 0, 2], [0, 3, 5, 7]
    messy = sp.csr_matrix((np.array(values, dtype=np.float32), genes, starts), shape=(3, 3))
    assert data.row_hashes(plain) == data.row_hashes(messy)
    assert len(set(data.row_hashes(plain))) == 2


def test_l7_finds_cells_of_the_corpus(monkeypatch, tmp_path):
    """A stand-in for shards: the corpus holds five of the cells, among other genes and other cells."""
    ours = case("integration")
    names = list(ours.given.var_names)

    class Corpus:
        symbols = ["OTHER", *names]

        def __init__(self, folder):
            rng = np.random.default_rng(0)
            held = ours.given.layers["counts"][:5].toarray()
            self.counts = np.vstack([held, rng.poisson(2, (20, len(names)))]).astype(np.float32)

        def __len__(self):
            return len(self.counts)

        def rows(self, cells):
            return sp.csr_matrix(np.hstack([np.full((len(cells), 1), 9.0), self.counts[cells]]))

    monkeypatch.setattr("scmamba2.pretraining.shards.Shards", Corpus)
    monkeypatch.setattr(data, "FEWEST_SHARED_GENES", 10)
    ours.corpus = tmp_path
    found = list(data.duplicates(ours))[1]
    assert (found.result, found.value) == ("warn", pytest.approx(5 / 60))


@pytest.mark.parametrize("task", TASKS)
def test_l11_counts_types_that_one_side_lacks(task):
    whole = case(task)
    assert next(iter(data.overlap(whole))).result == "pass"
    lacking = case(task)
    if task == "annotation":
        lacking.solution.uns["reference_labels"] = ["type 0", "type 1"]
    else:
        lacking.solution.obs["batch"] = np.where(lacking.labels == "type 2", "b1", "b0")
    found = next(iter(data.overlap(lacking)))
    assert found.result == "warn"
    expected = 2 / 3 if task == "annotation" else 1.0
    assert found.value == pytest.approx(expected)


def test_l16_says_when_batches_look_random():
    assert data.random_batches(case("integration")).result == "pass"
    mixed = {"mixing_k15": 0.49, "shuffled_k15": 0.5, "shuffled_low_k15": 0.48}
    found = data.random_batches(case("integration", room=mixed))
    assert found.result == "warn" and "AvgBATCH" in found.sentence


def test_a2_shuffles_the_reference_alone_and_falls_to_chance(monkeypatch):
    monkeypatch.setattr(data, "N_PERMUTED", 2)
    whole = case()
    shuffled = data.permute_reference(whole.given, np.random.default_rng(0))
    before, after = (adata.obs["label"] for adata in (whole.given, shuffled))
    assert before[~whole.hidden].value_counts().equals(after[~whole.hidden].value_counts())
    assert (before[~whole.hidden] != after[~whole.hidden]).any() and after[whole.hidden].isna().all()
    found = data.permuted_reference(whole)
    assert found.result == "pass" and found.value < 0.6


def test_a2_would_notice_labels_that_the_shuffle_does_not_reach(monkeypatch):
    monkeypatch.setattr(data, "N_PERMUTED", 2)
    monkeypatch.setattr(data, "permute_reference", lambda given, rng: given)
    assert data.permuted_reference(case()).result == "warn"


def test_a2_is_no_laxer_where_shuffles_make_other_labels_common(monkeypatch):
    uneven = case()
    uneven.labels = np.array(["a"] * 24 + ["b"] * 4 + ["c"] * 2)
    said = iter("abc")
    monkeypatch.setattr(data, "_knn_on", lambda adata, folder: np.full(30, next(said)))
    found = data.permuted_reference(uneven)  # one label for all cells, another each time: exactly chance
    assert found.result == "pass" and "± 0.050" in found.sentence


def test_a_metric_without_a_value_is_not_put_into_a_sentence():
    rows = [avg_bio("ours", np.nan, rule=rule) for rule in ("scib-1.1.5", "leiden-r1", "scib-metrics")]
    levels = ("epoch", "order", "padding", "cls_position", "permuted")
    rows += [avg_bio("ours", np.nan, level=level, unit="0") for level in levels]
    table = audits.run_audits(case("integration", rows, [run("ours")]))
    assert not table["sentence"].str.contains("nan").any()


def test_chance_accuracy_is_the_mean_and_sd_over_permutations():
    rng = np.random.default_rng(0)
    truth, predicted = rng.choice(list("aaabbc"), 200), rng.choice(list("aabd"), 200)
    found = [(rng.permutation(truth) == predicted).mean() for _ in range(4000)]
    mean, sd = data.chance_accuracy(truth, predicted)
    assert mean == pytest.approx(np.mean(found), abs=0.002)
    assert sd == pytest.approx(np.std(found), rel=0.05)
    assert data.chance_accuracy(truth, np.repeat("a", 200))[1] == pytest.approx(0, abs=1e-9)


def leak_obs(adata, labels, hidden):
    adata.obs["cluster"] = pd.Categorical(np.unique(labels, return_inverse=True)[1].astype(str))


def leak_codes(adata, labels, hidden):
    adata.obs["score"] = np.unique(labels, return_inverse=True)[1] * 1.5


def leak_obsm(adata, labels, hidden):
    noise = np.random.default_rng(0).normal(size=(adata.n_obs, 3))
    noise[:, 2] = np.unique(labels, return_inverse=True)[1] + 0.1 * noise[:, 2]
    adata.obsm["X_umap"] = noise


def leak_uns(adata, labels, hidden):
    adata.uns["recipe"] = {"more": {"types": labels[hidden]}}


def leak_names(adata, labels, hidden):
    adata.obs_names = [f"{'xyz'[int(label[-1])]}-{i}" for i, label in enumerate(labels)]


LEAKS = [leak_obs, leak_codes, leak_obsm, leak_uns, leak_names]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("leak", LEAKS)
def test_a6_finds_labels_wherever_they_hide(task, leak):
    clean = case(task)
    found = data.unreachable(clean)
    # the synthetic file lists its types in turn, which no rule of two halves can use
    assert found.result == "pass" and found.value < 0.6
    leaky = case(task)
    labels = make_cells(60).obs["cell_type"].to_numpy(dtype=str)
    leak(leaky.given, labels, leaky.hidden)
    found = data.unreachable(leaky)
    assert (found.result, found.value) == ("warn", pytest.approx(1.0, abs=0.02))


def test_a_column_of_unique_names_predicts_nothing_and_a_sorted_file_everything():
    labels = np.repeat(["x", "y", "z"], 40)
    assert data.predicts(np.array([f"cell {i}" for i in range(120)]), labels) == 0
    assert data.predicts(np.arange(120), labels) > 0.95
    assert data.predicts(np.full(120, np.nan), labels) == 0
    half = np.where(np.arange(120) % 2 == 0, labels, None)
    assert data.predicts(half, labels) == pytest.approx(0.5, abs=0.1)


# ---------------------------------------------------------------- scores


def test_l2_says_how_far_the_search_lifts_a_method():
    rules = {"scib-1.1.5": 0.8, "leiden-r1": 0.7, "scib-metrics": 0.6}
    rows = [avg_bio("ours", value, rule=rule) for rule, value in rules.items()]
    rows += [avg_bio("random_embedding", 0.18, rule=rule) for rule in rules]
    ours, noise = scores.searched_resolution(case("integration", rows))
    assert (ours.result, ours.value) == ("warn", pytest.approx(0.1))
    assert (noise.result, noise.value) == ("pass", 0) and "pure noise" in noise.sentence
    assert one(scores.searched_resolution(case())).result == "not applicable"


def test_l3_is_the_mean_over_seeds_of_what_a_peek_would_add():
    own = [row("ours", value, seed=seed) for seed, value in enumerate((0.5, 0.6))]
    trace = {0: (0.4, 0.56, 0.5), 1: (0.6, 0.5, 0.6)}
    rows = own + [
        row("ours", value, seed=seed, level="epoch", unit=str(epoch))
        for seed, values in trace.items() for epoch, value in enumerate(values, 1)
    ]  # fmt: skip
    found = one(scores.best_epoch(case(rows=rows)))
    assert (found.result, found.value) == ("warn", pytest.approx(0.03))
    assert "3.0 points" in found.sentence and "3 traced epochs" in found.sentence
    calm = [r for r in rows if r["value"] != 0.56]
    assert one(scores.best_epoch(case(rows=calm))).result == "pass"


def test_l10_scales_between_best_control_and_ceiling():
    rows = [avg_bio(m, v) for m, v in (("pca", 0.6), ("label_onehot", 1.0), ("ours", 0.7), ("rival", 0.5))]
    dataset, ours, rival = scores.saturation(case("integration", rows))
    assert (dataset.result, dataset.value) == ("pass", pytest.approx(0.4))
    assert (ours.result, ours.value) == ("pass", pytest.approx(0.25))
    assert (rival.result, rival.value) == ("warn", pytest.approx(-0.25))
    none = case(rows=[row("majority", 1.0), row("ours", 1.0)], room={"ceiling": 1.0})
    assert one(scores.saturation(none)).result == "warn"
    tight = [row("majority", 0.97), row("ours", 0.98)]
    found = list(scores.saturation(case(rows=tight, room={"ceiling": 1.0})))
    assert (found[0].result, found[0].value) == ("warn", pytest.approx(0.03))


@pytest.mark.parametrize(("values", "result"), [([0.5], "warn"), ([0.5, 0.6] * 2, "warn"),
                                                ([0.5, 0.6] * 3, "pass"), ([0.5] * 3, "pass")])  # fmt: skip
def test_l12_wants_five_seeds_of_what_varies(values, result):
    rows = [row("ours", value, seed=seed) for seed, value in enumerate(values)]
    assert one(scores.seeds(case(rows=rows))).result == result


def test_l13_notices_a_run_that_is_scored_on_fewer_cells():
    rows, runs = [row("ours", 0.5), row("rival", 0.5)], [run("ours"), run("rival")]
    assert scores.every_cell(case(rows=rows, runs=runs)).result == "pass"
    fewer = [row("ours", 0.5), row("rival", 0.5, n=29)]
    assert scores.every_cell(case(rows=fewer, runs=runs)).value == 1
    assert scores.every_cell(case(rows=rows[:1], runs=runs)).value == 1  # no row at all
    units = {"ours": pd.DataFrame({"seed": 0, "unit_id": [f"c{i}" for i in range(29)]})}
    assert scores.every_cell(case(rows=rows, runs=runs, units=units)).value == 1


def probes(level, value, shift, seeds=(0, 1)):
    rows = [row("ours", 0.60, seed=seed) for seed in seeds]
    for seed in seeds:
        rows.append(row("ours", value, seed=seed, level=level, unit="0"))
        rows.append(row("ours", shift, seed=seed, level=level, unit="0", metric="shift", impl="labels"))
    return case(rows=rows)


def test_probes_tell_a_change_of_the_score_from_a_change_of_the_output():
    found = one(scores.gene_order(probes("order", 0.55, 0.2)))
    assert (found.result, found.value) == (
        "warn",
        pytest.approx(0.05),
    ) and "20.0 % of the labels" in found.sentence
    assert one(scores.gene_order(probes("order", 0.595, 0.2))).result == "pass"
    assert one(scores.padding(probes("padding", 0.60, 0.0))).result == "pass"
    assert one(scores.padding(probes("padding", 0.60, 0.01))).result == "warn"
    assert one(scores.cls_position(probes("cls_position", 0.3, 0.4))).result == "warn"
    assert one(scores.padding(case())).result == "not applicable"


def test_l18_warns_where_best_seeds_would_name_another_winner():
    def leaders(*values):
        rows = [row(m, v, seed=s) for m, vs in zip(("ours", "rival"), values, strict=True)
                for s, v in enumerate(vs)]  # fmt: skip
        return scores.means_not_bests(case(rows=rows))

    assert leaders((0.5, 0.6), (0.4, 0.5)).result == "pass"
    swapped = leaders((0.5, 0.9), (0.8, 0.8))
    assert (swapped.result, swapped.value) == (
        "warn",
        pytest.approx(0.2),
    ) and "Rival leads" in swapped.sentence
    assert leaders((0.5,), (0.4,)).result == "not applicable"


def test_a1_falls_to_chance_or_warns():
    rng = np.random.default_rng(0)
    truth = rng.choice(["a", "b", "c"], 300)
    units = {"ours": pd.DataFrame({"seed": 0, "unit_id": range(300), "truth": truth, "predicted": truth})}

    def shuffled(values):
        rows = [row("ours", 1.0)]
        rows += [row("ours", v, level="permuted", unit=str(i)) for i, v in enumerate(values)]
        return one(scores.permuted_labels(case(rows=rows, units=units)))

    fair = [(rng.permutation(truth) == truth).mean() for _ in range(5)]
    assert shuffled(fair).result == "pass"
    assert shuffled([0.5] * 5).result == "warn"
    rows = [avg_bio("ours", 0.8), avg_bio("ours", 0.17, level="permuted", unit="0")]
    assert one(scores.permuted_labels(case("integration", rows))).result == "pass"
    rows[1]["value"] = 0.4
    assert one(scores.permuted_labels(case("integration", rows))).result == "warn"


def test_a5_is_the_range_over_rules():
    rows = [avg_bio("ours", v, rule=r) for r, v in (("scib-1.1.5", 0.8), ("leiden-r1", 0.77))]
    found = one(scores.implementations(case("integration", rows)))
    assert (found.result, found.value) == ("warn", pytest.approx(0.03))
    rows[1]["value"] = 0.79
    assert one(scores.implementations(case("integration", rows))).result == "pass"


def test_a7_finds_equal_files_and_equal_scores():
    rows = [row("ours", 0.5), row("rival", 0.6), row("majority", 0.4)]
    assert scores.identical_outputs(case(rows=rows)).result == "pass"
    rows[2]["output_sha256"] = "ours0"
    assert scores.identical_outputs(case(rows=rows)).value == 1
    rows[1]["value"] = 0.5
    found = scores.identical_outputs(case(rows=rows))
    assert (found.result, found.value) == ("warn", 2) and "Ours and Rival" in found.sentence


# ---------------------------------------------------------------- conduct


def trained(keep, *, task="annotation", **params):
    info = {"history": [{"epoch": 1}, {"epoch": 2}], "selected_epoch": 2}
    return case(task, runs=[run("ours", params={"keep": keep} | params, info=info)])


def test_l4_says_what_chose_the_epoch():
    assert [f.result for f in conduct.selection(trained("last"))] == ["pass", "pass"]
    assert [f.result for f in conduct.selection(trained("best"))] == ["pass", "pass"]
    assert [f.result for f in conduct.selection(trained("best", task="integration"))] == ["pass", "warn"]
    untrained = trained("best", task="integration", losses=["gepc", "dar"], criterion="gep")
    assert "not trained on" in list(conduct.selection(untrained))[1].sentence
    info = {"history": [{"epoch": 1}], "selected_epoch": 1, "keep": "best", "criterion": "accuracy"}
    rival = list(conduct.selection(case(runs=[run("rival", info=info)])))[1]
    assert rival.result == "pass" and "by the validation accuracy of reference cells" in rival.sentence
    info["criterion"] = "loss"
    rival = list(conduct.selection(case("integration", runs=[run("rival", info=info)])))[1]
    assert rival.result == "warn", "a rival that looks at scored cells is no better than ours"
    moved = case(runs=[run("ours"), run("ours", 1, sha="other")])
    assert one(conduct.selection(moved)).result == "warn"


def test_l8_is_the_share_of_genes_outside_the_vocabulary():
    found = one(conduct.vocabulary(case(runs=[run("ours", info={"gene_coverage": 0.9}), run("rival")])))
    assert (found.result, found.value, found.method) == ("warn", pytest.approx(0.1), "ours")
    assert one(conduct.vocabulary(case(runs=[run("ours", info={"gene_coverage": 1.0})]))).result == "pass"


def test_l17_warns_of_grids_and_changed_parameters_that_others_do_not_have():
    even = [run("ours", params={"losses": ["gep", "dar"]}), run("rival")]
    assert one(conduct.tuning(case(runs=even))).result == "pass"
    grid = one(conduct.tuning(case(runs=[run("ours", params={"C": [0.1, 1, 10]}), run("rival")])))
    assert grid.result == "warn" and "Ours tries 3 values" in grid.sentence
    changed = one(conduct.tuning(case(runs=[run("ours", changed={"epochs": 30}), run("rival")])))
    assert changed.result == "warn" and changed.value == 1
    chosen = {"tuning_trials": 4, "tuned_params": ["epochs"]}
    tuned = [run(m, changed={"epochs": 30}) | chosen for m in ("ours", "rival")]
    fair = one(conduct.tuning(case(runs=tuned)))
    assert fair.result == "pass" and "Ours tries 4 values" in fair.sentence
    tuned[1]["tuning_trials"] = 0
    assert one(conduct.tuning(case(runs=tuned))).result == "warn"
    besides = [run("ours", changed={"epochs": 30, "dropout": 0.1}) | chosen, run("rival") | chosen]
    assert "Ours has 1 parameters that the config" in one(conduct.tuning(case(runs=besides))).sentence


def test_l19_wants_a_checksum_of_every_file():
    assert conduct.checksums(case(fetched={"cells": {"hash": "verified"}})).result == "pass"
    assert conduct.checksums(case(fetched={"cells": {"hash": "not recorded"}})).result == "warn"
    assert conduct.checksums(case()).result == "warn"


# ---------------------------------------------------------------- the step


def test_the_step_survives_a_dataset_that_could_not_be_had_and_gathers(tmp_path):
    from workflow.files import write_json
    from workflow.steps.score import RUN_COLUMNS, UNIT_TYPES, VALUE_COLUMNS

    prepared = {"dataset": "pbmc68k", "task": "annotation", "status": "no_data", "reason": "the disk is full"}
    write_json(tmp_path / "pbmc68k/annotation/prepared.json", prepared)
    scored = tmp_path / "scores/annotation/pbmc68k/majority.parquet"
    scored.parent.mkdir(parents=True)
    pd.DataFrame(columns=[*RUN_COLUMNS, *VALUE_COLUMNS]).to_parquet(scored)
    pd.DataFrame(columns=list(UNIT_TYPES)).to_parquet(scored.with_suffix(".units.parquet"))
    record = run("majority", status="no_data") | {"task": "annotation", "dataset": "pbmc68k"}
    write_json(scored.with_suffix(".json"), [record])
    table, room = step.audit_dataset(tmp_path / "pbmc68k/annotation/prepared.json", [scored])
    assert set(table["result"]) == {"not applicable"}
    assert room["sentence"] == "not applicable: the disk is full"
    for name in ("a", "b"):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        write_json(tmp_path / f"{name}.json", room | ({"knn": 0.5} if name == "b" else {}))
    paths = [tmp_path / "a", tmp_path / "b"]
    every, rooms = step.gather(*([p.with_suffix(s) for p in paths] for s in (".csv", ".json")))
    assert len(every) == 2 * len(table) and list(every.columns) == audits.COLUMNS
    assert list(rooms.columns[:3]) == ["task", "dataset", "sentence"] and rooms["knn"].isna().sum() == 1
