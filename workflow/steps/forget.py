"""Delete the records of what failed below a results folder, so that the next call tries it again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from workflow.files import read_json

RECORDS = ("fetch.json", "tidy.json", "prepared.json", "run.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="folder of a selection, for instance results/demo")
    args = parser.parse_args()
    if not args.results.is_dir():
        parser.error(f"{args.results}: no such folder")
    forgotten = 0
    for name in RECORDS:
        for path in sorted(args.results.rglob(name)):
            record = read_json(path)
            # a method that says it cannot do a dataset would only say so again
            if record["status"] not in ("ok", "not_applicable"):
                print(f"forgot {path} ({record['status']}: {record['reason']})")
                path.unlink()
                forgotten += 1
    print(f"{forgotten} failed records forgotten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
