"""Delete the records of what failed below a results folder, so that the next call tries it again.

That is also a record of files that lacks an optional one, a tuning of which a trial failed, and a record that
a failure calls outdated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from workflow.files import read_json

RECORDS = ("fetch.json", "tidy.json", "prepared.json", "tuned.json", "run.json")


def failures(results: Path) -> dict[Path, str]:
    """Return the records to forget, and why."""
    found: dict[Path, str] = {}
    for name in RECORDS:
        for path in sorted(results.rglob(name)):
            record = read_json(path)
            # a method that says it cannot do a dataset would only say so again
            if record["status"] not in ("ok", "not_applicable"):
                found[path] = f"{record['status']}: {record['reason']}"
            elif absent := record.get("absent") if name == "fetch.json" else None:
                found[path] = f"without {', '.join(absent)}: {'; '.join(absent.values())}"
            for number, trial in enumerate(record.get("trials", [])):  # each method must have as many
                if trial["status"] not in ("ok", "not_applicable"):
                    found.setdefault(path, f"trial {number} {trial['status']}: {trial['reason']}")
            if "outdated" in record:
                found.setdefault((path.parent / record["outdated"]).resolve(), "outdated")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder of a selection, for instance results/demo")
    args = parser.parse_args()
    if not args.results.is_dir():
        parser.error(f"{args.results}: no such folder")
    found = failures(args.results)
    for path, reason in found.items():
        print(f"forgot {path} ({reason})")
        path.unlink(missing_ok=True)
    print(f"{len(found)} records forgotten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
