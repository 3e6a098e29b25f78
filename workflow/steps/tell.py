"""Say what became of the data: the last word of ``snakemake download`` and ``snakemake prepare``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from workflow.files import read_json


def summary(records: list[dict], results: str) -> str:
    """Count the datasets that are ok, and give the reason of each that is not.

    Parameters
    ----------
    records
        Contents of fetch.json, tidy.json or prepared.json; a dataset may have several.
    results
        Folder of the selection, for the advice.

    Returns
    -------
    str
        A line for each dataset that is not ok or lacks something, and the count last.
    """
    reasons: dict[str, str] = {}
    lines = []
    for record in records:
        if record["status"] != "ok":
            reasons.setdefault(record["dataset"], f"{record['status']}: {record['reason']}")
        elif record.get("absent"):
            lines.append(f"{record['dataset']}: ok without {', '.join(record['absent'])}")
    lines += [f"{name}: {reason}" for name, reason in reasons.items()]
    datasets = len({record["dataset"] for record in records})
    lines.append(f"{datasets - len(reasons)} of {datasets} datasets ok")
    if reasons:
        lines.append(
            f"to try the others again: python -m workflow.steps.forget {results}, then the same command"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True)
    parser.add_argument("records", nargs="+", type=Path)
    args = parser.parse_args()
    print(summary([read_json(path) for path in args.records], args.results), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
