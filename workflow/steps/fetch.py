"""Step 1: bring a dataset's files here and check them.

A file that is downloaded lands in the downloads folder, which checkouts share. A source may list
several addresses; they are tried in order. The record says which one served, and the checksum found.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from workflow.declarations import ROOT, WORKFLOW, load_yaml
from workflow.files import ON_FAILURE, checksum, write_json


class FetchError(RuntimeError):
    """A source could not be had from any of its addresses."""


def locate(url: str) -> Path:
    """Return the path behind a ``file:`` or ``package:`` address.

    Raises
    ------
    FetchError
        If the file, or the package, is not there.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "file":
        path = ROOT / rest
    else:
        package, _, inside = rest.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise FetchError(f"{url}: the package {package!r} is not installed")
        path = Path(spec.submodule_search_locations[0]) / inside
    if not path.is_file():
        raise FetchError(f"{url}: no such file")
    return path


def fetch_source(name: str, source: dict, folder: Path) -> dict:
    """Bring one source here.

    Parameters
    ----------
    name
        Name of the source, for messages.
    source
        ``urls`` and, where known, ``hash``, as in datasets.yaml.
    folder
        Where downloads go.

    Returns
    -------
    dict
        ``path``, ``url``, ``sha256``, ``bytes`` and ``hash`` (``verified`` or ``not known``).

    Raises
    ------
    FetchError
        With what each address answered.
    """
    expected = source.get("hash")
    answers = []
    for url in source["urls"]:
        try:
            if url.startswith(("file:", "package:")):
                path = locate(url)
            else:
                import pooch

                path = Path(
                    pooch.retrieve(
                        url,
                        known_hash=expected,
                        path=folder,
                        fname=f"{name}-{url.rstrip('/').rsplit('/', 1)[-1]}",
                        progressbar=sys.stderr.isatty(),
                    )
                )
            if expected:
                algorithm, _, digest = expected.partition(":")
                found = checksum(path, algorithm)
                if found != digest:
                    raise FetchError(f"{url}: {algorithm} is {found}, expected {digest}")
        except Exception as error:  # each kind of failure of an address leads to the next one
            answers.append(str(error) if url in str(error) else f"{url}: {error}")
            print(f"[fetch] {answers[-1]}", file=sys.stderr)
            continue
        return {
            "path": str(path),
            "url": url,
            "sha256": checksum(path),
            "bytes": path.stat().st_size,
            "hash": "verified" if expected else "not known",
        }
    raise FetchError(f"source {name!r}: " + "; ".join(answers))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--record", required=True, type=Path)
    parser.add_argument(
        "--downloads",
        default=os.environ.get("SCMAMBA2_DOWNLOADS", ""),
        help="folder; empty is the user's cache folder",
    )
    parser.add_argument("--on-failure", choices=["record", "stop"], default=ON_FAILURE)
    args = parser.parse_args()

    entry = load_yaml(WORKFLOW / "datasets.yaml", "datasets")[args.dataset]
    if args.downloads:
        folder = Path(args.downloads).expanduser()
    else:
        import pooch

        folder = Path(pooch.os_cache("scmamba2"))
    record: dict = {"dataset": args.dataset, "status": "ok", "reason": "", "files": {}}
    for name, source in entry["sources"].items():
        try:
            record["files"][name] = fetch_source(name, source, folder / args.dataset)
        except FetchError as error:
            record |= {"status": "no_data", "reason": str(error)}
            break
    if record["status"] != "ok":
        print(f"[fetch] {args.dataset}: {record['reason']}", file=sys.stderr)
        if args.on_failure == "stop":
            return 1
    write_json(args.record, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
