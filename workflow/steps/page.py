"""Step 8: the report that people read, as one page that needs no other file and no network.

Everything on it was computed by earlier steps; here it is only put into words, in one order: the claims, then
what they rest on. Nothing but runs.csv and claims.csv must be there: a section without its file says so.
"""

from __future__ import annotations

import argparse
import ast
import base64
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from workflow import headline, html_tables
from workflow.declarations import WORKFLOW, load_register
from workflow.efficiency.analysis import OURS, TITLES, efficiency_table
from workflow.files import read_json, write_text
from workflow.present import METRIC_TITLES, VERDICT_CLASSES, dataset_title, declared
from workflow.steps.tables import caption_of, duration, headlines_of, readable, row_classes, runs_ok
from workflow.verdicts import COLUMNS

REPORT = WORKFLOW / "report"
#: Parameters of the paper's model, by its second version: what ours is measured against in words.
PAPER_PARAMETERS = 625e6
UNDECIDED = ("NOT TESTABLE", "NOT RUN")
VERDICT_MEANS = {
    "REPRODUCED": "the paper's value and its advantage both hold",
    "SUPPORTED": "the answer to a question of this suite is yes, or a claim on time holds as stated",
    "DIRECTION ONLY": "the advantage holds, the value does not or cannot be compared",
    "VALUE ONLY": "the value holds, the advantage does not, or none was claimed",
    "TIE": "the two are equal within the declared margin",
    "REVERSED": "the opposite holds",
    "NOT REPRODUCED": "the advantage does not hold, and the value does not either or cannot be compared",
    "INCONSISTENT": "the paper contradicts itself, or its own numbers its words",
    "INCONCLUSIVE": "the data do not tell",
    "NOT TESTABLE": "no run can decide it",
    "NOT RUN": "it could be decided, and was not run here",
}
NOT_TESTABLE = {
    "spec": "The statement is too vague to be tested",
    "power": "There are too few units to tell the methods apart",
    "data": "The data are not public",
    "weights": "The weights are not public",
    "compute": "It takes more computing than this suite may use",
}
#: What the evidence of a claim shows besides: column, words, and how it is written.
STATISTICS = [
    ("value_verdict", "value against the paper's", str),
    ("direction_verdict", "direction of the difference", str),
    ("margin_verdict", "claimed margin inside our interval", str),
    ("claimed_margin", "claimed margin", "number"),
    ("p_value", "p, paired difference", "p"),
    ("p_holm", "p after Holm's correction", "p"),
    ("p_sign_flip", "p, sign-flip permutation over seeds", "p"),
    ("p_wilcoxon", "p, Wilcoxon signed rank over seeds", "p"),
    ("p_equivalence", "p, equivalence (two one-sided tests)", "p"),
    ("mcnemar", "McNemar, seed by seed", str),
    ("cohen_d", "Cohen's d, paired", "number"),
    ("cliffs_delta", "Cliff's delta", "number"),
    ("superiority", "probability of superiority", "number"),
    ("mde", "smallest difference shown with 80 % power", "number"),
    ("seeds_needed", "seeds needed to show the claimed margin (else the margin of equality)", "count"),
    ("comparator_value_ours", "comparator, our value", "number"),
    ("chance", "chance", "number"),
    ("ceiling", "ceiling", "number"),
    ("verdict_released", "verdict in the mode released", str),
    ("verdict_paper", "verdict in the mode paper", str),
]
#: What a figure is called; its caption is that of Snakemake's report.
FIGURES = {
    "forest": "All differences",
    "ranks": "Ranks across datasets",
    "headline": "Every seed",
    "cells": "Cells as each method sees them",
    "confusion": "Which cell types are taken for which",
    "epochs": "Epoch by epoch",
    "cost": "Cost against quality",
    "efficiency": "Time and memory against length",
}
#: Results of an audit, those first that a reader must see.
RESULT_SIGNS = {"warn": "▲", "pass": "✔", "not applicable": "–"}
SENSITIVITY = {
    "mode": "As the paper says, as the code was released, and repaired",
    "defect": "Defects of the released code, switched on one at a time",
    "conflict": "Where the paper and its code differ",
    "metric": "Other implementations of the metric",
    "labels": "Other sets of labels",
    "epoch": "Another epoch",
    "order": "Other orders of the genes",
}


def number(value: Any, signed: bool = False) -> str:
    """Write a score with three decimals, a large number without, a missing one as a dash."""
    if value is None or pd.isna(value):
        return "–"
    value = float(value)
    if np.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) >= 1000 or (value.is_integer() and abs(value) > 1):  # a count
        text = f"{value:+,.0f}" if signed else f"{value:,.0f}"
    else:
        text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text.replace("-", "−")


def p_text(value: Any) -> str:
    """Write a p value."""
    if value is None or pd.isna(value):
        return "–"
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def interval(low: Any, high: Any, signed: bool = False) -> str:
    """Write the limits of an interval; nothing where there is none, or where it has no width."""
    if pd.isna(low) or pd.isna(high) or low == high:
        return ""
    return f"[{number(low, signed)}, {number(high, signed)}]"


def slug(*parts: Any) -> str:
    """Return an id for an anchor."""
    words = "-".join(str(part) for part in parts if not (part is None or pd.isna(part) or part == ""))
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def true(value: Any) -> bool:
    """Read a boolean that went through a CSV with empty places."""
    return value is True or str(value) == "True"


def read(folder: Path, name: str) -> pd.DataFrame | None:
    """Read a CSV of the results folder; None if it is not there or has no line."""
    path = folder / name
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path)
    except pd.errors.EmptyDataError:
        return None
    return table if len(table) else None


def why_undecided(line: dict[str, Any]) -> str:
    """Return the reason under which an undecided claim is grouped."""
    if line["verdict"] == "NOT TESTABLE":
        code = line["not_testable"] or line["reason"].split(":")[0]
        return NOT_TESTABLE.get(code, "No run can decide it")
    first = line["reason"].split(";")[0]
    first = first.removeprefix("not compared with ").rpartition(": ")[2]
    found = re.match(r"(dataset|method|task|metric) \S+ (?:of \S+ )?is (.*)$", first)
    return (
        f"The {found[1]} is {found[2]}" if found else (first[:1].upper() + first[1:] or "No reason was given")
    )


def claim_view(
    line: dict[str, Any], names: dict[str, str], methods: dict[str, str], folder: Path
) -> dict[str, Any]:
    """Put one line of claims.csv into words; strings are escaped by the template, not here."""
    view: dict[str, Any] = {k: "" if pd.isna(v) else v for k, v in line.items()}
    view["id"] = slug("claim", line["claim_id"], view["dataset"], view["metric"])
    view["kind"] = VERDICT_CLASSES.get(line["verdict"], "open")
    view["word"] = slug(line["verdict"])
    view["where"] = "" if view["where"] == "-" else view["where"]
    view["on"] = names.get(view["dataset"], view["dataset"])
    view["what"] = METRIC_TITLES.get(view["metric"], view["metric"].replace("_", " "))
    view["ours"], view["ours_interval"] = number(line["ours"]), interval(line["ours_low"], line["ours_high"])
    view["paper_value"], view["claimed_margin"] = number(line["paper_value"]), number(line["claimed_margin"])
    view["n_seeds"] = 0 if pd.isna(line["n_seeds"]) else int(line["n_seeds"])
    view["measured"] = pd.notna(line["ours"]) and view["n_seeds"] > 0
    for key in ("subject", "comparator", "best_trivial"):
        named = str(view[key]).split(", ")
        view[f"{key}_title"] = ", ".join(methods.get(name, name) for name in named)
    view["delta"] = number(line["delta"], signed=True)
    view["delta_interval"] = interval(line["delta_low"], line["delta_high"], signed=True)
    view["best_trivial_value"] = number(line["best_trivial_value"])
    view["beaten"] = true(line["beaten_by_trivial"])
    view["only_released"] = true(line["only_released"])
    view["chance"], view["ceiling"] = number(line["chance"]), number(line["ceiling"])
    view["p_holm"], view["mde"] = p_text(line["p_holm"]), number(line["mde"])
    view["departures"] = [part for part in str(view["departures"]).split("; ") if part]
    view["because"] = why_undecided(view)
    # what the heading of its group leaves unsaid
    own = line["verdict"] == "NOT TESTABLE" or ";" in view["reason"]
    view["adds"] = view["reason"].removeprefix(f"{view['not_testable']}: ") if own else ""
    view["reason"] = view["reason"][:1].upper() + view["reason"][1:]
    # a statistic that was not computed has no line; its column was empty before it was written as a dash
    write: dict[Any, Callable[[Any], str]] = {
        "number": number,
        "p": p_text,
        "count": lambda v: f"{v:,.0f}" if np.isfinite(v) else "∞",
        str: str,
    }
    view["statistics"] = [
        (words, write[how](line[key])) for key, words, how in STATISTICS if pd.notna(line[key])
    ]
    paths = str(view["files"]).split()
    view["files"] = [(path, (folder / path).exists()) for path in paths]
    if view["rows"]:
        view["query"] = f"pandas.read_parquet(\"rows.parquet\").query('{view['rows']}')"
    else:
        view["query"] = ""
    return view


def claims_section(
    claims: pd.DataFrame, names: dict[str, str], methods: dict[str, str], folder: Path
) -> dict[str, Any]:
    """Count the verdicts and part the claims into decided ones and, by their reason, undecided ones."""
    claims = claims.reindex(columns=COLUMNS)
    views = [claim_view(line, names, methods, folder) for line in claims.to_dict("records")]
    taken: dict[str, int] = {}
    for view in views:  # two lines may differ in the implementation of the metric alone
        taken[view["id"]] = taken.get(view["id"], 0) + 1
        if taken[view["id"]] > 1:
            view["id"] += f"-{taken[view['id']]}"
    rank = list(VERDICT_CLASSES)
    decided = [view for view in views if view["verdict"] not in UNDECIDED]
    measured = [view for view in decided if view["measured"]]
    groups = [
        ("The paper's comparisons", [view for view in measured if view["source"] == "paper"]),
        ("Questions of this suite", [view for view in measured if view["source"] != "paper"]),
    ]
    undecided: dict[tuple[str, str], list] = {}
    for view in views:
        if view["verdict"] in UNDECIDED:
            undecided.setdefault((view["verdict"], view["because"]), []).append(view)
    counts = claims["verdict"].value_counts()
    against = [view for view in decided if view["best_trivial"]]
    return {
        "counts": [(word, int(counts[word])) for word in rank if word in counts],
        "total": len(views),
        "n_claims": claims["claim_id"].nunique(),
        "groups": [(title, sorted(mine, key=lambda v: rank.index(v["verdict"]))) for title, mine in groups],
        "in_words": sorted(
            (view for view in decided if not view["measured"]), key=lambda v: rank.index(v["verdict"])
        ),
        "undecided": sorted(undecided.items(), key=lambda item: (rank.index(item[0][0]), -len(item[1]))),
        "n_against": len(against),
        "n_beaten": sum(view["beaten"] for view in against),
        "n_departing": sum(bool(view["departures"]) for view in decided),
        "n_decided": len(decided),
    }


def as_dict(text: Any) -> dict:
    """Read a dictionary that went through a CSV."""
    try:
        value = ast.literal_eval(text) if isinstance(text, str) else text
    except (SyntaxError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def scale_sentence(runs: pd.DataFrame, datasets: dict[str, dict], methods: dict[str, dict]) -> str:
    """Say in one sentence what scale this run had: whose data, how large and how trained a model, seeds.

    A run that does not say on how many cells its model was pre-trained counts as one without. Arms are left
    out, such as the one from scratch, unless only they ran.
    """
    used = [name for name in runs["dataset"].unique() if name in datasets]
    own = [name for name in used if datasets[name]["in_paper"] == "full"]
    ours = runs[runs["kind"] == "ours"]
    arms = ours["method"].map(lambda name: bool(methods.get(name, {}).get("arm"))).astype(bool)
    infos: list[dict] = []
    for mine in (ours[~arms], ours):
        infos = infos or [i for i in map(as_dict, mine["info"]) if i.get("n_parameters")]
    sizes = sorted({float(info["n_parameters"]) for info in infos})
    scratch = not all(info.get("pretrained_cells") for info in infos)
    parts = []
    small = bool(sizes) and sizes[0] < 0.8 * PAPER_PARAMETERS
    if small:
        times = sorted({float(f"{PAPER_PARAMETERS / size:.1g}") for size in sizes})
        span = f"{times[0]:,.0f}" if len(times) == 1 else f"{times[0]:,.0f} to {times[-1]:,.0f}"
        parts.append(f"a model {span} times smaller than the paper's")
    elif sizes:
        parts.append(f"a model of {sizes[-1] / 1e6:,.0f} M parameters")
    if sizes and scratch:
        parts[-1] += " without its pre-training" if small else " without the paper's pre-training"
    if used and not own:
        parts.insert(0, "real cells, but none of the paper's datasets")
    elif used:
        parts.insert(0, f"{len(own)} of {len(used)} datasets are the paper's own")
    n = runs["seed"].nunique()
    parts.append(f"{n} seed" + ("" if n == 1 else "s"))
    word = "Demonstration" if small or not own else "Run"
    said = " It shows that the way through works; it is no test of the paper's values."
    return f"{word}: {', '.join(parts)}." + (said if small or (sizes and scratch) else "")


def picture(path: Path) -> str | None:
    """Return a picture as a data URI, SVG where it is the smaller file; None if there is none."""
    found = [p for p in (path, path.with_suffix(".svg")) if p.is_file()]
    if not found:
        return None
    best = min(found, key=lambda p: p.stat().st_size)
    kind = "image/svg+xml" if best.suffix == ".svg" else "image/png"
    return f"data:{kind};base64,{base64.b64encode(best.read_bytes()).decode('ascii')}"


def figures_section(
    folder: Path, pairs: Iterable[tuple[str, str]], names: dict[str, str]
) -> list[dict[str, Any]]:
    """Return every figure of this selection that was drawn."""
    pairs = list(pairs)
    wanted = [("forest", "forest", "")]
    wanted += [(f"{task}_ranks", "ranks", task.capitalize()) for task in dict.fromkeys(t for t, _ in pairs)]
    for task, dataset in pairs:
        on = f"{task.capitalize()}, {names.get(dataset, dataset)}"
        wanted += [
            (f"{task}_{dataset}_{kind}", kind, on)
            for kind in ("headline", "cells", "confusion", "epochs", "cost")
        ]
    wanted.append(("efficiency", "efficiency", ""))
    out = []
    for stem, kind, on in wanted:
        path = folder / f"figures/{stem}.png"
        source = picture(path)
        if source:
            title = f"{FIGURES[kind]}: {on}" if on else FIGURES[kind]
            caption = (REPORT / f"{kind}.rst").read_text(encoding="utf-8").strip()
            file = (
                f"figures/{path.with_suffix('.svg').name if path.with_suffix('.svg').exists() else path.name}"
            )
            out.append(
                {
                    "id": slug("figure", stem),
                    "title": title,
                    "caption": caption,
                    "source": source,
                    "file": file,
                }
            )
    return out


def tables_section(folder: Path, runs: pd.DataFrame, datasets: dict[str, dict]) -> list[dict[str, Any]]:
    """Return the table of each dataset, and that of the efficiency task, where they were written."""
    out = []
    for task, dataset in runs[["task", "dataset"]].drop_duplicates().itertuples(index=False):
        table = read(folder, f"tables/{task}_{dataset}.csv")
        if table is None:
            continue
        for column in ("note", "trouble"):
            table[column] = table[column].fillna("")
        entry = datasets[dataset]
        caption = caption_of(runs.loc[runs["dataset"] == dataset, "seed"].nunique())
        name = slug("table", task, dataset)
        gt = html_tables.great_table(readable(table, task), name, classes=row_classes(table["kind"]))
        title = f"{dataset_title(dataset, entry)}: {task}"
        out.append(
            {"id": f"{name}-head", "title": title, "caption": f"{caption} {entry.get('note', '')}".strip()}
        )
        out[-1]["table"] = Markup(html_tables.region(html_tables.bare(gt), title))
    path = folder / "efficiency/measurements.json"
    if path.is_file():
        _, text, caption = efficiency_table(read_json(path))
        classes = ["ours" if name == TITLES[OURS] else "" for name in text["Method"]]
        gt = html_tables.great_table(text, "table-efficiency", classes=classes)
        table = Markup(html_tables.region(html_tables.bare(gt), "Efficiency"))
        out.append({"id": "table-efficiency-head", "title": "Efficiency", "caption": caption, "table": table})
    return out


def headline_section(
    folder: Path, summary: pd.DataFrame | None, runs: pd.DataFrame, names: dict[str, str]
) -> list[dict[str, Any]]:
    """Return the headline table of each task."""
    if summary is None or not (folder / "rows.parquet").is_file():
        return []
    rows = pd.read_parquet(folder / "rows.parquet", columns=["dataset", "method", "departures"])
    out = []
    for table in headlines_of(summary, rows, runs, names):
        gt = headline.to_great_table(table, names, header=False)
        stem = f"tables/headline_{table.task}"
        files = [f"{stem}.{form}" for form in ("html", "md", "csv", "tex")]
        out.append(
            {
                "id": f"headline-{table.task}-head",
                "title": table.title,
                "caption": table.caption,
                "table": Markup(html_tables.region(html_tables.bare(gt), table.title)),
                "files": [file for file in files if (folder / file).exists()],
            }
        )
    return out


def room_section(room: pd.DataFrame | None, names: dict[str, str]) -> list[dict[str, Any]]:
    """Return what is known of each dataset before any model ran."""
    if room is None:
        return []
    out = []
    for line in room.to_dict("records"):
        numbers = [
            (key.replace("_", " "), value if isinstance(value, str) else f"{value:.4g}")
            for key, value in line.items()
            if key not in ("task", "dataset", "sentence", "verdict") and pd.notna(value)
        ]
        title = f"{names.get(line['dataset'], line['dataset'])}: {line['task']}"
        out.append({"title": title, "sentence": line["sentence"], "numbers": numbers})
    return out


def sensitivity_section(
    table: pd.DataFrame | None, names: dict[str, str], methods: dict[str, str]
) -> list[dict[str, Any]]:
    """Return a table for each kind of change, with a line that sums it up."""
    if table is None:
        return []
    out = []
    for kind, mine in table.groupby("kind", sort=False):
        lines = [
            {
                "Changed": str(row["title"])
                if kind in ("metric", "labels")
                else f"{row['id']}: {row['title']}",
                "Method": methods.get(row["method"], row["method"]),
                "Dataset": names.get(row["dataset"], row["dataset"]),
                "Metric": METRIC_TITLES.get(row["metric"], str(row["metric"])),
                "As judged": number(row["base_value"]),
                "Changed to": number(row["variant_value"]),
                "Effect": number(row["effect"], signed=True),
                "95 % interval": interval(row["low"], row["high"], signed=True),
                "Seeds": f"{row['n_seeds']:.0f}",
                "In words": row["sentence"] if pd.notna(row["sentence"]) else "",
            }
            for row in mine.to_dict("records")
        ]
        title = SENSITIVITY.get(str(kind), str(kind).capitalize())
        gt = html_tables.great_table(pd.DataFrame(lines), slug("sensitivity", kind))
        effects = mine["effect"].dropna()
        largest = ""
        if len(effects):
            ends = number(effects.min(), signed=True), number(effects.max(), signed=True)
            largest = f", effects from {ends[0]} to {ends[1]}" if effects.abs().max() else ", no effect"
        many = f"{len(mine)} comparison" + ("" if len(mine) == 1 else "s")
        out.append(
            {
                "title": title,
                "summary": many + largest,
                "open": kind in ("mode", "defect", "conflict"),
                "table": Markup(html_tables.region(html_tables.bare(gt), title)),
            }
        )
    return out


def register_section(
    entries: list[dict], sensitivity: pd.DataFrame | None, kind: str
) -> list[dict[str, Any]]:
    """Return the entries of a register, each with the effect that was measured here."""
    out = []
    for entry in entries:
        effects = []
        if sensitivity is not None:
            mine = sensitivity[(sensitivity["kind"] == kind) & (sensitivity["id"] == entry["id"])]
            effects = [
                " ".join(
                    [
                        f"{row['dataset']}, {METRIC_TITLES.get(row['metric'], row['metric'])}:",
                        number(row["effect"], signed=True),
                        interval(row["low"], row["high"], signed=True),
                    ]
                ).strip()
                for row in mine.to_dict("records")
            ]
        if not effects:
            other = entry.get("no_toggle") or entry.get("decided_by")
            effects = [other or "not run in this selection"]
        out.append({**entry, "measured": effects})
    return out


def audits_section(
    audits: pd.DataFrame | None, names: dict[str, str], methods: dict[str, str]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the audits by their result, warnings first."""
    if audits is None:
        return []
    groups: dict[str, list[dict[str, Any]]] = {word: [] for word in RESULT_SIGNS}
    for line in audits.to_dict("records"):
        view = {key: "" if pd.isna(value) else value for key, value in line.items()}
        view["value"] = f"{view['value']:.4g}" if isinstance(view["value"], float) else view["value"]
        parts = [names.get(view["dataset"], view["dataset"]), methods.get(view["method"], view["method"])]
        view["on"] = ", ".join(filter(None, parts))
        view["sign"] = RESULT_SIGNS.get(view["result"], "▲")
        groups.setdefault(view["result"], []).append(view)
    return [(word, lines) for word, lines in groups.items() if lines]


def costs_section(costs: pd.DataFrame | None, names: dict[str, str]) -> Markup | None:
    """Return the table of costs."""
    if costs is None:
        return None

    def amount(value: Any, unit: str = "", digits: int = 3) -> str:
        if pd.isna(value):
            return "–"
        if np.isinf(value):
            return "∞"
        return f"{value:,.{digits}g}{unit}" if value < 1000 else f"{value:,.0f}{unit}"

    text = pd.DataFrame(
        [
            {
                "Method": row["title"],
                "Dataset": names.get(row["dataset"], row["dataset"]),
                "Parameters": amount(row["n_parameters"]) if row["n_parameters"] else "–",
                "Time": duration(row["seconds"]),
                "CPU": amount(row["cpu_hours"], " h"),
                "GPU": amount(row["gpu_hours"], " h"),
                "Memory": amount(row["peak_memory_mb"], " MB", 4),
                "Energy": amount(row["energy_kwh"], " kWh")
                + (" (est.)" if row["energy_kind"] != "measured" else ""),
                "Money": amount(row["money"], f" {row['currency']}"),
                "Gain over best control": number(row["gain"], signed=True),
                "Money per +0.01": amount(row["money_per_001"], f" {row['currency']}"),
            }
            for row in costs.to_dict("records")
        ]
    )
    gt = html_tables.great_table(text, "costs-table", classes=row_classes(costs["kind"]))
    return Markup(html_tables.region(html_tables.bare(gt), "Cost of one run of each method"))


def methods_section(runs: pd.DataFrame, methods: dict[str, dict]) -> Markup | None:
    """Return how each method was run: versions, genes it could use, parameters, tuning, and its bridges.

    A bridge is a place where the original could not be run as it is; the method says it in its ``info``.
    """
    runs = runs[runs["status"] == "ok"]
    lines, kinds = [], []
    for (task, method), mine in runs.groupby(["task", "method"], sort=False):
        entry = methods.get(str(method), {})
        if entry.get("variant"):  # of a defect or conflict: as the method that it varies
            continue
        infos = [as_dict(info) for info in mine["info"]]
        versions = as_dict(mine.iloc[0]["versions"])
        of_dataset = zip(mine["dataset"], infos, strict=True)
        genes = {name: info["n_genes"] for name, info in of_dataset if info.get("n_genes") is not None}
        sizes = [info["n_parameters"] for info in infos if info.get("n_parameters")]
        bridges = dict.fromkeys(text for info in infos for text in info.get("bridge", []))
        changed = {key for params in mine["changed_params"] for key in as_dict(params)}
        counts = sorted(set(genes.values()))
        lines.append(
            {
                "Method": entry.get("title", method),
                "Task": task,
                "Versions": ", ".join(
                    f"{name} {versions.get(name) or '?'}" for name in entry.get("packages", [])
                )
                or "–",
                "Genes": " to ".join(f"{n:,}" for n in dict.fromkeys([counts[0], counts[-1]]))
                if counts
                else "–",
                "Values": f"{max(sizes):,}" if sizes else "–",
                "Trials": f"{mine['tuning_trials'].max():.0f}" if "tuning_trials" in mine else "0",
                "Changed": ", ".join(sorted(changed)) or "–",
                "Bridges, notes": " ".join(
                    f"{text.rstrip('.')}." for text in ["; ".join(bridges), entry.get("note", "")] if text
                )
                or "–",
            }
        )
        kinds.append(entry.get("kind", ""))
    if not lines:
        return None
    gt = html_tables.great_table(pd.DataFrame(lines), "methods-table", classes=row_classes(pd.Series(kinds)))
    return Markup(html_tables.region(html_tables.bare(gt), "How each method was run"))


def environment(runs: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Return commits, machines and versions of the runs, each with the number of runs."""

    def counted(values: Iterable[str]) -> list[str]:
        counts = pd.Series(list(values), dtype=object).value_counts(sort=False)
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return [f"{value} ({n} {'run' if n == 1 else 'runs'})" for value, n in ordered]

    machines = []
    for record in map(as_dict, runs["hardware"]):
        gpus = ", ".join(record.get("gpus") or []) or "no GPU"
        machines.append(f"{record.get('cpu', 'unknown CPU')}, {record.get('cores', '?')} cores, {gpus}")
    versions = [
        f"{name} {version}" for record in map(as_dict, runs["versions"]) for name, version in record.items()
    ]
    return [
        ("Commit", counted(runs["commit"].fillna("unknown").astype(str))),
        ("Machine", counted(machines)),
        ("Versions", counted(versions)),
    ]


def not_run(runs: pd.DataFrame, names: dict[str, str]) -> list[dict[str, Any]]:
    """Return what gave no value and why, runs with one reason together."""
    bad = runs[runs["status"] != "ok"].copy()
    bad[["why", "reason"]] = bad[["why", "reason"]].fillna("")
    out = []
    keys = ["task", "dataset", "method", "status", "why", "reason"]
    for (task, dataset, method, status, why, reason), mine in bad.groupby(keys, sort=False):
        seeds = ", ".join(str(seed) for seed in sorted(mine["seed"]))
        what = (why or status).replace("_", " ")
        on = names.get(dataset, dataset)
        out.append({"task": task, "on": on, "method": method, "what": what, "reason": reason, "seeds": seeds})
    return out


def build(folder: Path) -> str:
    """Return the page of a results folder.

    Parameters
    ----------
    folder
        The results of one selection; ``runs.csv`` and ``claims.csv`` must be there.

    Raises
    ------
    FileNotFoundError
        If one of the two tables is missing.
    """
    for name in ("runs.csv", "claims.csv"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name}: not there; the page is built from the judge step's tables"
            )
    runs = pd.read_csv(folder / "runs.csv")
    claims = pd.read_csv(folder / "claims.csv")
    summary, sensitivity = read(folder, "summary.csv"), read(folder, "sensitivity.csv")
    datasets, methods = declared()
    titles_of = {name: entry["title"] for name, entry in methods.items()}
    names = {name: dataset_title(name, entry) for name, entry in datasets.items()}
    pairs = list(runs[["task", "dataset"]].drop_duplicates().itertuples(index=False, name=None))
    able = int((runs["status"] != "not_applicable").sum())
    ok = int((runs["status"] == "ok").sum())
    environment_ = Environment(
        loader=FileSystemLoader(REPORT),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment_.get_template("page.html.j2").render(
        run=folder.resolve().name,
        style=Markup((REPORT / "page.css").read_text(encoding="utf-8")),
        scale=scale_sentence(runs, datasets, methods),
        classes=VERDICT_CLASSES,
        means=VERDICT_MEANS,
        slug=slug,
        claims=claims_section(claims, names, titles_of, folder),
        room=room_section(read(folder, "room.csv"), names),
        headlines=headline_section(folder, summary, runs, names),
        figures=figures_section(folder, pairs, names),
        tables=tables_section(folder, runs, datasets),
        sensitivity=sensitivity_section(sensitivity, names, titles_of),
        audits=audits_section(read(folder, "audits.csv"), names, titles_of),
        defects=register_section(load_register("defects"), sensitivity, "defect"),
        conflicts=register_section(load_register("conflicts"), sensitivity, "conflict"),
        costs=costs_section(read(folder, "costs.csv"), names),
        how=methods_section(runs, methods),
        environment=environment(runs),
        not_run=not_run(runs, names),
        runs_ok=runs_ok(ok, len(runs) - able, len(runs)),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="folder of this selection")
    parser.add_argument("--page", type=Path, required=True, help="HTML to write")
    args = parser.parse_args()
    try:
        text = build(args.results)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    write_text(args.page, text)
    print(f"{args.page}: {len(text.encode()) / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
