"""The claims, their schema and the published numbers."""

import copy

import jsonschema
import numpy as np
import pandas as pd
import pytest
import yaml

from workflow.declarations import WORKFLOW, DeclarationError, check, load_yaml
from workflow.verdicts import (
    HEADLINE,
    hits_note,
    judge_arithmetic,
    judge_counts,
    judge_statements,
    power_note,
    published_spread,
)

CLAIMS = load_yaml(WORKFLOW / "claims.yaml", "claims")
BY_ID = {claim["id"]: claim for claim in CLAIMS}
SCHEMA = yaml.safe_load((WORKFLOW / "schemas/claims.schema.yaml").read_text())
PUBLISHED = pd.read_csv(WORKFLOW / "published.csv", keep_default_na=False)
PAPER_IDS = (
    "B1 B2 B3 B4 B5 B6 A1 A1b A2 A3 A4 A5 A6 A7 A8 A9 P1 P2 P3 R1 R2 M1 M2 M3 M4a M4b M5 M6 T1 T2".split()
)
SUITE_IDS = [f"S{i}" for i in range(1, 13)]


def test_every_claim_of_the_paper_and_every_question_is_there_once():
    ids = [claim["id"] for claim in CLAIMS]
    assert sorted(ids) == sorted(PAPER_IDS + SUITE_IDS)
    assert {c["id"] for c in CLAIMS if c["source"] == "suite"} == set(SUITE_IDS)


def test_no_two_claims_say_the_same():
    assert len({claim["text"] for claim in CLAIMS}) == len(CLAIMS)


def test_the_schema_is_valid_and_closed_and_describes_every_key():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def walk(part):
        if part.get("type") == "object":
            assert "additionalProperties" in part
            for key, value in part.get("properties", {}).items():
                assert value.get("description"), key
                walk(value)
        if isinstance(part.get("items"), dict):
            walk(part["items"])

    walk(SCHEMA)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"comparater": ["pca"]}, "did you mean 'comparator'?"),
        ({"source": "papers"}, "did you mean 'paper'?"),
        ({"delta_eq": "small"}, "expected number"),
        ({"min_seeds": 1}, "min_seeds"),
        ({"paper_value": 0.8, "metric": None}, "metric"),
    ],
)
def test_a_wrong_claim_gives_one_line(change, words):
    claims = copy.deepcopy(CLAIMS)
    claims[0] |= change
    with pytest.raises(DeclarationError) as error:
        check(claims, "claims", "claims.yaml")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["delta_eq", "min_seeds", "dataset", "metric"])
def test_a_comparison_without_its_settings_is_refused(key):
    claims = copy.deepcopy(CLAIMS)
    del claims[0][key]
    with pytest.raises(DeclarationError, match=key):
        check(claims, "claims", "claims.yaml")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c["id"])
def test_numbers_of_a_claim_fit_together(claim):
    metrics = claim.get("metric", [])
    metrics = metrics if isinstance(metrics, list) else [metrics]
    if isinstance(claim.get("margin"), list):
        assert len(claim["margin"]) == len(metrics)
    if "paper_value" in claim and "comparator_value" in claim:
        difference = claim["paper_value"] - claim["comparator_value"]
        assert claim["margin"] == pytest.approx(difference, abs=1e-9)
    if claim["source"] == "suite":
        assert claim["dataset"] == "any"
        assert set(metrics) <= set(HEADLINE)
        assert "paper_value" not in claim


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c["id"])
def test_values_of_a_claim_stand_in_the_published_table(claim):
    paper = PUBLISHED[PUBLISHED["source_kind"] == "paper"]

    def stated(dataset, metric):
        rows = paper[(paper["dataset"] == dataset) & (paper["metric"] == metric)]
        return set(rows["value"].astype(float))

    for key in ("paper_value", "comparator_value"):
        if key in claim:
            assert claim[key] in stated(claim["dataset"], claim["metric"])
    for statement in claim.get("statements", []):
        assert statement["value"] in stated("-", claim["metric"])
    for name, count in claim.get("counts", {}).items():
        assert count in stated(claim["dataset"], name)


def test_the_published_table_is_tidy():
    assert list(PUBLISHED.columns) == [
        "task", "dataset", "method", "metric", "metric_impl", "value", "spread", "spread_kind",
        "n", "source_kind", "source", "note",
    ]  # fmt: skip
    assert set(PUBLISHED["source_kind"]) == {"paper", "independent"}
    assert PUBLISHED["value"].astype(float).gt(0).all()
    assert (PUBLISHED["source"] != "").all()
    assert ((PUBLISHED["spread"] == "") == (PUBLISHED["spread_kind"] == "")).all()
    assert not PUBLISHED.duplicated().any()
    shares = PUBLISHED[PUBLISHED["metric"].isin(HEADLINE)]
    assert shares["value"].astype(float).le(1).all()


@pytest.mark.parametrize(
    ("claim_id", "verdict", "words"),
    [
        ("T1", "VALUE ONLY", "0.821 to 0.836 is 1.83 percent (1.5 points), which agrees with 1.83 percent"),
        (
            "T2",
            "INCONSISTENT",
            "0.724 to 0.821 is 13.4 percent (9.7 points), but the text says 5 to 10 percent",
        ),
    ],
)
def test_the_arithmetic_of_the_text(claim_id, verdict, words):
    line = judge_arithmetic(BY_ID[claim_id])
    assert line["verdict"] == verdict
    assert words in line["reason"]
    assert line["reason"].startswith("no run enters this verdict")


def prepared(**found):
    return {"status": "ok", "found": {"n_obs": 90_261, "batches": {"a": 1, "b": 2}}, "recipe": found}


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ({"n_obs": 90_000, "batches": 2}, "VALUE ONLY"),  # 90,261 is 90,000 as people round
        ({"n_obs": 90_000, "batches": 3}, "NOT REPRODUCED"),
        ({"doubles": 131, "batches": 2}, "VALUE ONLY"),
        ({"doubles": 130, "splits": 9}, "VALUE ONLY"),  # within 1 percent; the other is not counted
        ({"doubles": 128}, "NOT REPRODUCED"),
        ({"splits": 9}, "INCONCLUSIVE"),
    ],
)
def test_counts_are_compared_with_the_prepared_dataset(counts, verdict):
    line = judge_counts({"counts": counts}, "norman", prepared(doubles=131))
    assert (line["verdict"], line["files"]) == (verdict, "data/norman/tidy.json")


def test_counts_of_a_dataset_that_is_not_there_say_how_to_get_it():
    line = judge_counts(BY_ID["P3"], "norman", None)
    assert (line["verdict"], line["command"]) == (
        "NOT RUN",
        "snakemake --cores 2 prepare --config data=norman",
    )
    line = judge_counts(BY_ID["P3"], "norman", {"status": "no_data", "reason": "HTTP 404"})
    assert line["reason"] == "dataset norman could not be prepared: HTTP 404"


def test_the_seeds_that_a_claimed_gap_takes_follow_from_the_spread_that_others_report():
    """Half-width .0105 of 10 seeds: SD .0147; two arms of 20 seeds tell .013 apart with 80 % power."""
    assert published_spread("ms", "accuracy", "scgpt") == pytest.approx(0.0147, abs=5e-5)
    note = power_note(BY_ID["A4"], "ms", "accuracy", 0.013)
    assert 20 <= int(note.split(" takes ")[1].split()[0]) <= 22
    assert np.isnan(published_spread("ms", "accuracy", "tosica"))
    assert power_note(BY_ID["A4"], "ms", "accuracy", None) == ""


def test_three_hits_of_seven_against_one_are_no_evidence():
    assert hits_note(BY_ID["R1"]) == "3 of 7 against 1 of 7 has p = 0.56 (Fisher)"
    assert hits_note(BY_ID["A1"]) == ""


@pytest.mark.parametrize(
    ("claim_id", "verdict", "ours"),
    [
        ("M1", "INCONSISTENT", 625_088_066),
        ("M2", "INCONSISTENT", 36_145_000),
        ("M3", "VALUE ONLY", 60_530),
    ],
)
def test_statements_of_the_paper(claim_id, verdict, ours):
    line = judge_statements(BY_ID[claim_id])
    assert (line["verdict"], line["ours"]) == (verdict, ours)
    assert f"{ours:,}" in line["reason"]
    assert line["reason"].startswith("no run enters this verdict; the paper says")


def statements(*values, **more):
    return {"statements": [{"value": v, "where": "text"} for v in values], **more}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [((100, 94.9), "INCONSISTENT"), ((100, 95), "NOT RUN"), ((100, 100), "NOT RUN")],
)
def test_five_percent_is_the_limit(values, verdict):
    assert judge_statements(statements(*values))["verdict"] == verdict


@pytest.mark.parametrize(("ours", "word"), [(50, "LOWER"), (200, "HIGHER")])
def test_consistent_statements_that_our_value_contradicts(ours, word):
    claim = statements(100, 99, computed={"parts": [ours], "how": "counted"})
    line = judge_statements(claim)
    assert (line["verdict"], line["value_verdict"]) == ("NOT REPRODUCED", word)
