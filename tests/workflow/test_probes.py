"""Probes: rows of known inputs, and what a bad file of probes says."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scib_metrics

from workflow import tasks
from workflow.contract import ContractError, check_output
from workflow.probes import cosine_shift, probe_rows, unit_of
from workflow.tidy import log_normalize


def table(rows: list[dict]) -> pd.DataFrame:
    """Rows by metric, rule and unit."""
    frame = pd.DataFrame(rows)
    return frame.set_index(["metric", "metric_impl", "unit_level", "unit_id"])


def cells_with(obs: dict | None = None, obsm: dict | None = None, n: int = 90) -> ad.AnnData:
    names = [f"cell{i}" for i in range(n)]
    return ad.AnnData(np.zeros((n, 0)), obs=pd.DataFrame(obs or {}, index=names), obsm=obsm or {})


@pytest.fixture(scope="module")
def integration():
    """Output, probes and solution: three types in two batches, far apart in the output."""
    rng = np.random.default_rng(0)
    label = np.arange(90) % 3
    apart = np.eye(3)[label] * 5 + rng.normal(scale=0.3, size=(90, 3))
    noise = rng.normal(size=(90, 3))
    probes = {
        "epoch_1": noise, "epoch_2": apart.astype(np.float16), "epoch_10": apart, "order_0": -apart,
        "order_1": noise, "padding": 2 * apart, "cls_last": np.zeros((90, 3)) + [1, 0, 0] + noise / 99,
    }  # fmt: skip
    solution = cells_with(
        {"label": [f"t{k}" for k in label], "batch": [f"b{k}" for k in np.arange(90) // 45]}
    )
    return cells_with(obsm={"X_emb": apart}), cells_with(obsm=probes), solution


def test_an_embedding_is_scored_as_the_output_is(integration, monkeypatch):
    output, probes, solution = integration
    for name, value in {
        "nmi_ari_cluster_labels_kmeans": {"nmi": 0, "ari": 0},
        "ilisi_knn": 0,
        "bras": 0,
    }.items():
        monkeypatch.setattr(scib_metrics, name, lambda *_, value=value: value)  # slow, and no matter here
    own = table(tasks.get("integration").score(output, solution, 0))["value"]
    found = table(probe_rows(probes, output, solution, "integration", 0))["value"]
    metrics = [("avg_bio", "scib-1.1.5"), ("avg_bio", "scib-1.1.7"), ("avg_batch", "scib")]
    for metric in metrics:
        run = own[(*metric, "run", "")]
        assert found[(*metric, "epoch", "10")] == run, "the same embedding has the same score"
        assert found[(*metric, "order", "0")] == pytest.approx(run), "a reflection changes no distance"
        assert found[(*metric, "padding", "")] == pytest.approx(run), "nor does a unit of length"
    for rule in ("scib-1.1.5", "scib-1.1.7"):
        assert found["avg_bio", rule, "epoch", "10"] > 0.9 > 0.5 > found["avg_bio", rule, "epoch", "1"]
    units = {(level, unit) for _, _, level, unit in found.index}
    assert units == {
        ("epoch", "1"), ("epoch", "2"), ("epoch", "10"), ("order", "0"), ("order", "1"), ("padding", ""),
        ("cls_position", "last"),
    }  # fmt: skip
    assert len(found) == 7 * 3 + 4 and found.index.is_unique


def test_the_shift_of_an_embedding(integration):
    output, probes, solution = integration
    rows = table(probe_rows(probes, output, solution, "integration", 0))
    shift = rows.sort_index().loc[("shift", "cosine"), "value"]
    assert shift["order", "0"] == pytest.approx(2), "opposite"
    assert shift["padding", ""] == pytest.approx(0, abs=1e-12)
    a, b = output.obsm["X_emb"], probes.obsm["order_1"]
    by_hand = [1 - x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)]
    assert shift["order", "1"] == pytest.approx(np.mean(by_hand))
    assert "epoch" not in shift.index.get_level_values(0), "an epoch is no disturbance"
    assert (rows["n_units"] == 90).all()
    assert cosine_shift(np.array([[0.0, 0], [1, 0]]), np.array([[1.0, 0], [1, 1]])) == pytest.approx(
        (1 + 1 - 0.5**0.5) / 2
    )


def test_labels():
    truth = np.array(["a"] * 5 + ["b"] * 4 + ["c"])
    output = cells_with({"label_pred": truth}, n=10)
    changed = truth.copy()
    changed[:2] = "d"
    probes = cells_with(
        {"epoch_1": ["a"] * 10, "order_0": changed, "padding": truth, "cls_last": changed}, n=10
    )
    probes.obs["order_0"] = probes.obs["order_0"].astype("category")
    found = table(probe_rows(probes, output, cells_with({"label": truth}, n=10), "annotation", 0))["value"]
    assert found["accuracy", "sklearn", "epoch", "1"] == 0.5
    assert found["macro_f1", "sklearn-union", "epoch", "1"] == pytest.approx(2 / 3 / 3)
    assert found["shift", "labels", "order", "0"] == found["shift", "labels", "cls_position", "last"] == 0.2
    # F1 of a is 6/8; b and c are right; d, which no cell is, has 0
    assert found["macro_f1", "sklearn-union", "order", "0"] == pytest.approx((0.75 + 1 + 1 + 0) / 4)
    assert found["accuracy", "sklearn", "padding", ""] == 1 and found["shift", "labels", "padding", ""] == 0
    assert len(found) == 4 * 2 + 3


def test_names():
    assert unit_of("epoch_12") == ("epoch", "12") and unit_of("order_0") == ("order", "0")
    assert unit_of("padding") == ("padding", "") and unit_of("cls_last") == ("cls_position", "last")


# --- the contract


@pytest.fixture(params=tasks.NAMES)
def run(request, cells, tmp_path):
    """Task, path of its output with a valid input beside it, and valid probes."""
    task = request.param
    cells.obs["label"] = cells.obs["cell_type"]
    log_normalize(cells)
    settings = {"split": {"kind": "stratified"}, "n_top_genes": 40}
    given, _, _ = tasks.get(task).make_io(cells, settings)
    given.write_h5ad(tmp_path / "input.h5ad")
    if task == "integration":
        names, values = given.obs_names, np.random.default_rng(0).normal(size=(60, 4))
        output, probes = (
            ad.AnnData(obs=pd.DataFrame(index=names), obsm={key: values.copy() for key in keys})
            for keys in (["X_emb"], ["epoch_1", "order_0", "padding", "cls_last"])
        )
    else:
        names = given.obs_names[given.obs["split"] == "query"]
        output = ad.AnnData(obs=pd.DataFrame({"label_pred": "type 1"}, index=names))
        columns = dict.fromkeys(("epoch_10", "order_0", "padding", "cls_last"), "type 2")
        probes = ad.AnnData(obs=pd.DataFrame(columns, index=names))
    output.write_h5ad(tmp_path / "output.h5ad")
    return task, tmp_path, probes


def check(run, probes) -> None:
    task, folder, _ = run
    if probes is not None:
        probes.write_h5ad(folder / "probes.h5ad")
    check_output(task, folder / "input.h5ad", folder / "output.h5ad")


def test_good_probes_and_none(run):
    check(run, None)
    check(run, run[2])


@pytest.mark.parametrize(
    "name", ["epoch_0", "epoch_1b", "epoch", "order_-1", "X_emb", "padding_1", "label_pred"]
)
def test_a_probe_has_a_name(run, name):
    task, _, probes = run
    slot = probes.obsm if task == "integration" else probes.obs
    slot[name] = slot["padding"]
    with pytest.raises(ContractError, match=f"^probes.h5ad: '{name}' is no probe: expected epoch_<n>"):
        check(run, probes)


def test_probes_of_other_cells(run):
    with pytest.raises(ContractError, match=r"^probes.h5ad: .*expected \d+, missing for instance"):
        check(run, run[2][:-1].copy())
    with pytest.raises(ContractError, match="^probes.h5ad: obs names are in another order than the input"):
        check(run, run[2][::-1].copy())


def test_probes_with_holes(run):
    task, _, probes = run
    if task == "integration":
        probes.obsm["order_0"][3, 1] = np.inf
        expected = r"^probes.h5ad: obsm\['order_0'\] has NaN or inf in 1 of 60 cells"
    else:
        probes.obs["order_0"] = pd.Categorical(["type 1"] * (probes.n_obs - 1) + [None])
        expected = r"^probes.h5ad: obs\['order_0'\] is missing for 1 query cells"
    with pytest.raises(ContractError, match=expected):
        check(run, probes)


def test_probes_of_another_kind(run):
    task, _, probes = run
    if task == "integration":
        probes.obsm["padding"] = probes.obsm["padding"][:, :3]
        expected = r"^probes.h5ad: obsm\['padding'\] has 3 dimensions, the output has 4"
    else:
        probes.obs["padding"] = "type 9"
        expected = r"^probes.h5ad: obs\['padding'\] has labels not in the reference: 'type 9'"
    with pytest.raises(ContractError, match=expected):
        check(run, probes)


def test_half_a_file_of_probes(run):
    _, folder, probes = run
    probes.write_h5ad(folder / "probes.h5ad")
    (folder / "probes.h5ad").write_bytes((folder / "probes.h5ad").read_bytes()[:2000])
    with pytest.raises(ContractError, match="^probes.h5ad is not a readable h5ad file"):
        check(run, None)
