"""The report page, built from recorded rows: whole, escaped, linked, deterministic."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import recorded

from workflow.drawing import save
from workflow.steps import page, tables
from workflow.steps.page import VERDICT_CLASSES, VERDICT_MEANS, build

VOID = {"meta", "link", "img", "br", "input", "hr"}
SVG = {"path", "circle", "rect", "use"}


class Page(HTMLParser):
    """What a test asks of a page: its ids, links, loads, headings, tables and text."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.headings: list[int] = []
        self.images: list[dict] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.scripts = 0
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID | SVG:
            self.open.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag in ("a", "use"):
            self.links.append(attributes["href"])
        elif "href" in attributes:
            self.loads.append(attributes["href"])
        self.loads += [attributes[key] for key in ("src", "srcset", "data", "poster") if key in attributes]
        self.loads += re.findall(r"url\(([^)]*)\)", attributes.get("style") or "")
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(attributes)
        self.scripts += tag == "script"

    def handle_endtag(self, tag):
        if tag in VOID | SVG:
            return
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A results folder with everything that a page may show; the rows are made up."""
    import matplotlib.pyplot as plt

    folder = tmp_path_factory.mktemp("results") / "made_up"
    folder.mkdir()
    recorded.results(folder)
    runs = pd.read_csv(folder / "runs.csv")
    runs.loc[runs["status"] == "failed", "reason"] = "<script>alert('a log')</script>"
    runs.to_csv(folder / "runs.csv", index=False)

    scores = [str(p) for p in sorted(folder.glob("scores/*/*/*.parquet")) if ".units" not in p.name]
    with pytest.MonkeyPatch.context() as patch:
        words = ["tables", "--scores", *scores, "--claims", str(folder / "claims.csv")]
        words += ["--summary", str(folder / "summary.csv"), "--results", str(folder)]
        patch.setattr("sys.argv", words)
        assert tables.main() == 0
    for stem in ("forest", "integration_ranks", "annotation_ms_confusion", "integration_pbmc10k_cells"):
        figure, axes = plt.subplots(figsize=(2, 1))
        axes.plot([0, 1])
        save(figure, folder / f"figures/{stem}.png")
    about = {"task": "integration", "dataset": "pbmc10k"}
    pd.DataFrame([about | {"batch_variance": 0.012, "sentence": "Little <b>to</b> integrate."}]).to_csv(
        folder / "room.csv", index=False
    )
    audits = [("L1", "warn", 1.0), ("L4", "pass", None), ("L9", "not applicable", None)]
    pd.DataFrame(
        [
            about
            | {"code": c, "method": "", "check": "a check", "result": r, "value": v, "sentence": "So it is."}
            for c, r, v in audits
        ]
    ).to_csv(folder / "audits.csv", index=False)
    effect = {
        "kind": "defect",
        "id": "D-13",
        "title": "Hiding <cls>",
        "method": "scmamba2",
        "metric": "avg_bio",
    }
    effect |= {"metric_impl": "scib-1.1.5", "base": "repaired", "base_value": 0.8, "variant": "D-13"}
    effect |= {"variant_value": 0.75, "effect": -0.05, "low": -0.06, "high": -0.04, "n_seeds": 5}
    pd.DataFrame([about | effect | {"sentence": "It costs."}]).to_csv(folder / "sensitivity.csv", index=False)
    cost = {"method": "scmamba2", "title": "SC-MAMBA2", "kind": "ours", "mode": "repaired", "n_runs": 5}
    cost |= {"seconds": 60.0, "cpu_hours": 0.02, "peak_memory_mb": 900.0, "gpu_hours": 0.0}
    cost |= {"peak_gpu_memory_mb": None, "energy_kwh": 0.001, "energy_kind": "estimate", "money": 0.01}
    cost |= {"currency": "USD", "n_parameters": 1000, "device": "CPU", "headline_metric": "avg_bio"}
    cost |= {"headline": 0.836, "best_trivial": "pca", "best_trivial_value": 0.7, "gain": -0.1}
    cost |= {"money_per_001": float("inf"), "seconds_per_001": float("inf"), "energy_per_001": float("inf")}
    pd.DataFrame([about | cost]).to_csv(folder / "costs.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def text(folder) -> str:
    return build(folder)


@pytest.fixture(scope="module")
def parsed(text) -> Page:
    return Page(text)


def words(text: str) -> str:
    """What a reader sees."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def test_every_verdict_and_every_claim_is_there(text, folder):
    seen = words(text)
    claims = pd.read_csv(folder / "claims.csv")
    assert set(claims["verdict"]) == set(recorded.VERDICTS)
    for word in recorded.VERDICTS:
        assert f'<use href="#sign-{page.slug(word)}"/>' in text
        assert re.search(rf"</svg> {word}</span>", text), word
    for claim in claims["claim_id"].unique():
        assert re.search(rf'class="anchor" href="#claim-{claim.lower()}[^"]*">{claim}</a>', text), claim
    assert seen.count("Evidence") == len(claims)
    counts = claims["verdict"].value_counts()
    assert f"{counts['DIRECTION ONLY']} direction only" in seen
    assert f"{len(claims)} verdicts on {claims['claim_id'].nunique()} claims" in seen


def test_every_verdict_has_a_class_a_meaning_and_a_shape_of_its_own(text):
    assert list(VERDICT_CLASSES) == list(VERDICT_MEANS)
    assert set(VERDICT_CLASSES) == set(recorded.VERDICTS)
    shapes = re.findall(r'<symbol id="sign-[a-z-]+" [^>]*>(.*?)</symbol>', text)
    assert len(shapes) == len(set(shapes)) == len(VERDICT_CLASSES)
    without_colour = [re.sub(r"#[0-9a-f]{3,6}", "", shape) for shape in shapes]
    assert len(set(without_colour)) == len(shapes)  # in black and white print, too


def test_the_numbers_of_a_claim_stand_in_its_row_and_its_evidence(text):
    block = text[text.index('id="claim-b1-pbmc10k-avg-bio"') : text.index('id="claim-b2-pbmc10k-avg-bio"')]
    seen = words(block)
    for number in (
        "0.836",
        "[0.831, 0.841]",
        "n = 5",
        "+0.036",
        "to Harmony",
        "0.700",
        "Unintegrated PCA",
        "0.960",
    ):
        assert number in seen, number
    assert "results (Fig. 3)" in seen and "REPRODUCED" in seen
    for name in ("p, sign-flip permutation", "Cohen&#39;s d", "p, equivalence", "claimed margin inside"):
        assert name in seen, name
    assert "pandas.read_parquet(&#34;rows.parquet&#34;).query(&#39;task == " in block
    assert 'href="scores/integration/pbmc10k/scmamba2.parquet"' in block
    assert "snakemake --cores all" in seen
    assert "beats ours" not in block
    lost = text[text.index('id="claim-b4-covid19-avg-bio"') :]
    assert "▲ beats ours" in lost[: lost.index("</tbody>")]


def test_the_evidence_gives_the_rows_it_names(folder):
    claims = pd.read_csv(folder / "claims.csv")
    line = claims[claims["claim_id"] == "B1"].iloc[0]
    rows = pd.read_parquet(folder / "rows.parquet").query(line["rows"])
    assert rows.groupby("method")["value"].mean()["scmamba2"] == pytest.approx(line["ours"])


def test_undecided_claims_stand_below_by_their_reason(text):
    decided, undecided = text.split('id="claims-undecided"')[0], text.split('id="claims-undecided"')[1]
    assert 'id="claim-b5-pbmc10k-avg-bio"' in undecided and 'id="claim-b5-pbmc10k-avg-bio"' not in decided
    seen = words(undecided)
    assert "The statement is too vague to be tested: 1" in seen
    assert "The method is not in this selection: 1" in seen
    assert "Not compared with scgpt: method scgpt is not in this selection" in seen


def test_reasons_are_grouped_without_the_names_in_them():
    def because(verdict: str, reason: str, code: str = "") -> str:
        return page.why_undecided({"verdict": verdict, "reason": reason, "not_testable": code})

    assert (
        because("NOT RUN", "dataset ms is not in this selection; a note")
        == "The dataset is not in this selection"
    )
    assert because("NOT RUN", "not compared with scgpt: method scgpt is not in the suite yet") == (
        "The method is not in the suite yet"
    )
    assert because("NOT RUN", "") == "No reason was given"
    assert because("NOT TESTABLE", "power: too few", "power") == page.NOT_TESTABLE["power"]


def test_nothing_is_loaded_from_elsewhere(parsed, text):
    assert parsed.loads and all(load.startswith("data:image/") for load in parsed.loads)
    assert not [link for link in parsed.links if re.match(r"(?i)(https?:|//|file:|javascript:|/)", link)]
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    assert "@import" not in style and "url(" not in style


def test_links_lead_somewhere(parsed, folder):
    inner = [link[1:] for link in parsed.links if link.startswith("#")]
    assert len(inner) > 20 and set(inner) <= set(parsed.ids)
    files = {link for link in parsed.links if not link.startswith("#")}
    assert "scores/annotation/ms/scmamba2.units.parquet" in files
    assert not [file for file in files if not (folder / file).exists()]


def test_ids_are_unique_and_the_structure_is_sound(parsed):
    assert len(parsed.ids) == len(set(parsed.ids))
    assert parsed.unbalanced == [] and parsed.open == []
    assert parsed.headings.count(1) == 1 and parsed.headings[0] == 1
    steps = [b - a for a, b in zip(parsed.headings, parsed.headings[1:], strict=False)]
    assert max(steps) <= 1
    heads = [attributes for tag, attributes in parsed.tags if tag == "th"]
    assert heads and all("scope" in attributes for attributes in heads)
    named = [a for tag, a in parsed.tags if a.get("role") == "region"]
    assert named and all(
        a["tabindex"] == "0" and (a.get("aria-label") or a.get("aria-labelledby")) for a in named
    )
    referred = [a[key] for _, a in parsed.tags for key in ("aria-labelledby", "for") if key in a]
    referred += [one for _, a in parsed.tags for one in a.get("headers", "").split()]
    assert referred and set(referred) <= set(parsed.ids)
    assert ("html", {"lang": "en"}) in parsed.tags


def test_every_figure_has_a_text_and_is_embedded_once(parsed):
    assert len(parsed.images) == 4
    assert all(len(image["alt"]) > 40 for image in parsed.images)


def test_what_a_log_or_a_claim_says_is_escaped(text, parsed):
    assert parsed.scripts == 1  # the page's own
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text  # a claim
    assert "&lt;script&gt;alert(&#39;a log&#39;)&lt;/script&gt;" in text  # the reason of a failed run
    assert "Little &lt;b&gt;to&lt;/b&gt; integrate." in text


def test_the_same_input_gives_the_same_bytes(folder, text):
    assert build(folder) == text


def test_optional_sections_say_that_they_are_empty(folder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("runs.csv", "claims.csv"):
        shutil.copy(folder / name, bare)
    text = build(bare)
    seen = words(text)
    assert seen.count("Not computed for this selection.") == 5
    assert "None was drawn for this selection." in seen
    parsed = Page(text)
    inner = {link[1:] for link in parsed.links if link.startswith("#")}
    assert parsed.unbalanced == [] and inner <= set(parsed.ids)
    (bare / "room.csv").write_text("")  # a step that wrote nothing
    assert build(bare).count("Not computed for this selection.") == 5


@pytest.mark.parametrize(
    "name",
    [
        "rows.parquet",
        "summary.csv",
        "room.csv",
        "audits.csv",
        "costs.csv",
        "sensitivity.csv",
        "tables",
        "figures",
    ],
)
def test_one_missing_file_leaves_the_rest(folder, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=lambda *_: [name, "scores"])
    assert 'id="claim-b1-pbmc10k-avg-bio"' in build(copy)


def test_without_verdicts_there_is_no_page(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"runs\.csv: not there"):
        build(tmp_path)


def test_measured_effects_stand_in_the_register(text):
    seen = words(text)
    assert "Hiding &lt;cls&gt;" in seen
    part = seen[seen.index("Defects of the released code", seen.index("Audits")) :]
    row = part[part.index("D-13") : part.index("D-14")]
    assert "pbmc10k, AvgBIO: −0.050 [−0.060, −0.040]" in row
    assert "not run in this selection" in part


def test_audits_have_a_word_and_a_sign(text):
    for word, sign in page.RESULT_SIGNS.items():
        assert f'<span aria-hidden="true">{sign}</span> {word}</span></td>' in text
    assert "1 warn, 1 pass, 1 not applicable" in words(text)


def test_an_infinite_price_is_shown_as_such(text):
    costs = text[text.index('id="costs-table-stub-1"') :]
    assert "∞" in costs[: costs.index("</tr>")] and "(est.)" in costs[: costs.index("</tr>")]


def test_the_title_of_a_headline_table_says_what_it_lacks(text):
    assert "incomplete: lacks SC-MAMBA2 untrained, scGPT fine-tuned, scGPT zero-shot, raw genes" in words(
        text
    )


def runs_of(
    sizes: list[int | None], datasets: list[str], pretrained: int = 0, seeds: int = 3
) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"dataset": dataset, "method": "scmamba2", "seed": seed, "kind": "ours", "info": str(info)}
            for dataset, size in zip(datasets, sizes, strict=True)
            for info in [{"n_parameters": size} | ({"pretrained_cells": pretrained} if pretrained else {})]
            for seed in range(seeds)
        ]
    )


@pytest.mark.parametrize(
    ("sizes", "datasets", "pretrained", "sentence"),
    [
        (
            [312_500, 312_500],
            ["pbmc_cite", "pbmc68k"],
            0,
            "Demonstration: real cells, but none of the paper's datasets, a model 2,000 times smaller than "
            "the paper's without its pre-training, 3 seeds. It shows that the way through works; it is no "
            "test of the paper's values.",
        ),
        (
            [625_000_000, 625_000_000],
            ["pbmc10k", "ms"],
            57_000_000,
            "Run: 2 of 2 datasets are the paper's own, a model of 625 M parameters, 3 seeds.",
        ),
        (
            [625_000_000],
            ["ms"],
            0,
            "Run: 1 of 1 datasets are the paper's own, a model of 625 M parameters without the paper's "
            "pre-training, 3 seeds. It shows that the way through works; it is no test of the paper's "
            "values.",
        ),
        ([None], ["pbmc10k"], 0, "Run: 1 of 1 datasets are the paper's own, 3 seeds."),
    ],
)
def test_the_scale_is_said_in_one_sentence(sizes, datasets, pretrained, sentence):
    declared = {name: {"in_paper": "full"} for name in ("pbmc10k", "ms")}
    declared |= {name: {"in_paper": "no"} for name in ("pbmc_cite", "pbmc68k")}
    methods = {"scmamba2": {}, "scmamba2_scratch": {"arm": "scratch"}}
    runs = runs_of(sizes, datasets, pretrained)
    assert page.scale_sentence(runs, declared, methods) == sentence
    arm = runs_of(sizes, datasets, 0).assign(method="scmamba2_scratch")
    assert page.scale_sentence(pd.concat([runs, arm]), declared, methods) == sentence, "arms do not speak"
    if not pretrained:
        assert page.scale_sentence(arm, declared, methods) == sentence, "unless they are alone"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.5, "0.500"), (-0.25, "−0.250"), (3.0, "3"), (1.0, "1.000"), (625088066, "625,088,066"),
        (float("nan"), "–"), (None, "–"), (float("inf"), "∞"),
    ],
)  # fmt: skip
def test_numbers(value, shown):
    assert page.number(value) == shown


def test_p_values():
    assert [page.p_text(p) for p in (0.0004, 0.0314, 1.0, float("nan"))] == ["< .001", ".031", "1.000", "–"]


def luminance(colour: str) -> float:
    colour = colour.lstrip("#")
    colour = "".join(2 * c for c in colour) if len(colour) == 3 else colour
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """WCAG 2.1, definition of the contrast ratio."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_has_enough_contrast():
    css = (page.REPORT / "page.css").read_text()
    named = dict(re.findall(r"--(\w+): (#\w+)", css))
    grounds = [named["ground"], named["pale"], "#fff7d6", *re.findall(r"background: (#\w+)", css)]
    inks = [named["ink"], named["soft"], named["link"], *re.findall(r"[; {]color: (#\w+)", css)]
    from workflow.html_tables import ROW_STYLES

    for look in ROW_STYLES.values():
        inks += [look["ink"]] if "ink" in look else []
        grounds += [look["fill"]] if "fill" in look else []
    assert len(inks) > 6
    for ink in inks:
        for ground in grounds:
            assert contrast(ink, ground) >= 4.5, (ink, ground)


def test_how_each_method_was_run_stands_in_a_row():
    info = "{'n_genes': 1187, 'n_parameters': 1234567, 'bridge': ['torchtext is dead, 40 lines stand in']}"
    line = {"task": "integration", "dataset": "pbmc10k", "method": "harmony", "status": "ok", "info": info}
    line |= {"versions": "{'harmonypy': '2.1.0', 'numpy': '2.4.6'}", "tuning_trials": 4}
    other = line | {"dataset": "covid19", "info": "{'n_genes': 900}"}
    line |= {"changed_params": "{'theta': 2}"}
    other |= {"changed_params": "{'sigma': 0.1}"}  # as tuning may choose, other ones on another dataset
    bad = other | {"method": "pca", "status": "failed"}
    methods = {
        "harmony": {
            "title": "Harmony",
            "kind": "classical",
            "packages": ["harmonypy"],
            "note": "Old settings",
        }
    }
    table = page.methods_section(pd.DataFrame([line, other, bad]), methods)
    for text in ("Harmony", "harmonypy 2.1.0", "900 to 1,187", "1,234,567", ">4<", "sigma, theta"):
        assert text in table, text
    assert "torchtext is dead, 40 lines stand in. Old settings." in table
    assert "PCA" not in table and "numpy" not in table
    assert page.methods_section(pd.DataFrame([bad]), methods) is None
