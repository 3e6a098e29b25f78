"""What of the data is here, what is missing, and how much room it needs; the catalogue as a document."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from workflow.declarations import WORKFLOW, closest, load_yaml
from workflow.fetching import lockfile
from workflow.fetching.addresses import ARCHIVES, addresses, archive_place, file_name, place
from workflow.fetching.lockfile import LOCKFILE
from workflow.fetching.verification import Expected, FetchError, gigabytes
from workflow.steps.fetch import downloads_folder, locate

#: What a file can be, the best first; a dataset is called by its worst file.
STATES = {
    "present": "here, and a checksum is declared",
    "recorded": "here, and its checksum stands in datasets.lock",
    "unverified": "here, with no checksum to compare; the next download records one",
    "partial": "half a file, which the next download goes on with; of a dataset, some of its files",
    "missing": "not here",
    "changed": "not what is declared or recorded",
}


@dataclass
class Found:
    """What there is of a file or a dataset."""

    state: str
    bytes: int = 0  #: on disk
    needed: float = 0  #: still to fetch, as far as it is known
    unknown: int = 0  #: files still to fetch whose size is not known
    problems: list[str] = field(default_factory=list)


def look(dataset: str, source: Mapping, downloads: Path, seen: Mapping, verify: bool) -> Found:
    """Say what there is of a source.

    Parameters
    ----------
    dataset, source
        The dataset's name, and the source as declared.
    downloads
        Folder of the downloads.
    seen
        Content of datasets.lock.
    verify
        Whether to compute checksums; otherwise sizes are compared.

    Returns
    -------
    Found
        Its need does not count an archive, which other files may come from too.
    """
    first = addresses(source)[0]
    path = place(downloads, dataset, source)
    if first.local and first.member is None:
        try:
            path = locate(first.url)
        except FetchError as error:
            return Found("missing", problems=[str(error)])
    if not path.is_file():
        part = path.with_name(f"{path.name}.part")
        here = part.stat().st_size if part.is_file() else 0
        size = source.get("bytes") or source.get("about_mb", 0) * 1e6
        return Found("partial" if here else "missing", here, max(0, size - here), unknown=int(not size))
    declared = [source.get("hash")] + [a.hash for a in addresses(source) if a.member is None]
    hashes = {known: "declared" for known in declared if known}
    line = seen.get(f"{dataset}/{path.name}")
    size = source.get("bytes")
    state = "present" if hashes else "unverified"
    if not hashes and line:
        state, size, hashes = "recorded", line.bytes, {f"sha256:{line.sha256}": f"recorded on {line.date}"}
    ways = [{known: who} for known, who in hashes.items()] if verify else []  # any declared one will do
    wrong = [Expected(size, None, way).problem(path, path.name) for way in ways or [{}]]
    if all(wrong):
        return Found("changed", path.stat().st_size, problems=[f"{path}: {wrong[0]}"])
    return Found(state, path.stat().st_size)


def take_stock(
    entries: Mapping[str, Mapping], downloads: Path, lock: Path = LOCKFILE, verify: bool = False
) -> tuple[dict[str, Found], float, int]:
    """Say what there is of several datasets.

    Parameters
    ----------
    entries
        Their declarations.
    downloads
        Folder of the downloads.
    lock
        Where checksums are recorded.
    verify
        Whether to compute checksums.

    Returns
    -------
    found
        By dataset.
    needed
        Bytes still to fetch for all of them, archives once.
    unknown
        Files whose size is not known, archives among them.
    """
    seen = lockfile.read(lock)
    found: dict[str, Found] = {}
    archives: dict[Path, float] = {}
    for dataset, entry in entries.items():
        total = Found("present")
        files = []
        for source in entry["sources"].values():
            one = look(dataset, source, downloads, seen, verify)
            files.append(one)
            total.bytes += one.bytes
            total.needed += one.needed
            total.unknown += one.unknown
            total.problems += one.problems
            first = addresses(source)[0]
            if one.state in ("missing", "partial") and first.member is not None and not first.local:
                archive = archive_place(downloads, first)
                if not archive.is_file():
                    part = archive.with_name(f"{archive.name}.part")
                    here = part.stat().st_size if part.is_file() else 0
                    size = first.bytes or (first.about_mb or 0) * 1e6
                    archives[archive] = max(0, size - here) if size else float("nan")
        states = [one.state for one in files]
        total.state = max(states, key=list(STATES).index)
        if total.state == "missing" and set(states) != {"missing"}:
            total.state = "partial"
        found[dataset] = total
    sizes = [size for size in archives.values() if size == size]
    needed = sum(one.needed for one in found.values()) + sum(sizes)
    unknown = sum(one.unknown for one in found.values()) + len(archives) - len(sizes)
    return found, needed, unknown


def _show(found: Mapping[str, Found], needed: float, unknown: int, downloads: Path) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    colours = dict(zip(STATES, ("green", "green", "yellow", "yellow", "red", "red"), strict=True))
    table = Table(box=None, pad_edge=False)
    for title in ("dataset", "state", "on disk", "to fetch"):
        table.add_column(title, justify="left" if title in ("dataset", "state") else "right", no_wrap=True)
    for name, one in found.items():
        least = "at least " if one.unknown and one.needed else ""
        need = least + gigabytes(one.needed) if one.needed else "unknown" if one.unknown else "-"
        colour = colours[one.state]
        table.add_row(name, f"[{colour}]{one.state}[/]", gigabytes(one.bytes) if one.bytes else "-", need)
    console.print(table)
    for one in found.values():
        for problem in one.problems:
            console.print(problem, markup=False, highlight=False, soft_wrap=True)
    folder = next(f for f in (downloads, *downloads.parents) if f.exists())
    more = f", and {unknown} files or archives of unknown size" if unknown else ""
    free = gigabytes(shutil.disk_usage(folder).free)
    console.print(
        f"to fetch, archives included: {gigabytes(needed)}{more}; free: {free} in {downloads}",
        highlight=False,
    )
    for state in sorted({one.state for one in found.values()}, key=list(STATES).index):
        console.print(f"{state}: {STATES[state]}", highlight=False)


def _size(item: Mapping) -> str:
    if item.get("bytes"):
        return gigabytes(item["bytes"])
    return f"about {gigabytes(item['about_mb'] * 1e6)}" if item.get("about_mb") else "not known"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


_INTRODUCTION = """\
# Datasets

Written by `python -m workflow.steps.inventory --markdown` from `workflow/datasets.yaml`.

`snakemake --cores 1 download` fetches the files, and `python -m workflow.steps.inventory` says what is here
and how much room the rest needs. Downloads lie in the user's cache folder, or in the folder that `downloads:`
in the configuration or `SCMAMBA2_DOWNLOADS` names; it is called `<downloads>` below.

**By hand.** A file that cannot be fetched may be put in its place by hand; it is found and verified. So may
the archive that it comes from. If a run recorded the failure, delete that record and run again
(`python -m workflow.steps.forget results/<selection>`).

**Checksums.** Where none is declared, the first download is recorded in `workflow/datasets.lock`. Commit that
file if you trust it: another file under the same address is an error from then on.

"""


def document(entries: Mapping[str, Mapping]) -> Iterable[str]:
    """Yield the lines of the catalogue, from the declarations alone."""
    yield from _INTRODUCTION.splitlines()
    yield "| dataset | title | in the paper | tasks | licence |"
    yield "|---|---|---|---|---|"
    for name, entry in entries.items():
        tasks = ", ".join(entry["tasks"]) or "-"
        title, licence = _cell(entry["title"]), _cell(entry["licence"])
        yield f"| [`{name}`](#{name}) | {title} | {entry['in_paper']} | {tasks} | {licence} |"
    for name, entry in entries.items():
        yield ""
        yield f"## {name}"
        yield ""
        words = [f"**{_cell(entry['title'])}.**", f"Cite: {_cell(entry['citation'])}."]
        yield " ".join([*words, f"Licence: {_cell(entry['licence'])}."])
        if entry.get("used_for"):
            yield f"Used for: {_cell(entry['used_for'])}."
        yield ""
        yield "| file | size | checksum | from |"
        yield "|---|---|---|---|"
        for source in entry["sources"].values():
            yield f"| {_where(name, source)} | {_size(source)} | {_checksums(source)} | {_from(source)} |"
        if entry.get("note"):
            yield ""
            yield _cell(entry["note"])


def _where(dataset: str, source: Mapping) -> str:
    first = addresses(source)[0]
    if first.local and first.member is None:
        return f"`{first.url}`"
    return f"`<downloads>/{dataset}/{file_name(source)}`" + (" (optional)" if source.get("optional") else "")


def _checksums(source: Mapping) -> str:
    return f"`{source['hash']}`" if source.get("hash") else "recorded on first download"


def _from(source: Mapping) -> str:
    words = []
    for address in addresses(source):
        text = f"`{_cell(address.url)}`" if not address.url.startswith("http") else f"<{address.url}>"
        if address.member is not None:
            packed = "" if address.local else f" (`<downloads>/{ARCHIVES}/{address.archive}`"
            known = [_size(vars(address))] if address.bytes or address.about_mb else []
            known += [f"`{address.hash}`"] if address.hash else []
            packed += "".join(f", {fact}" for fact in known) + ")" if packed else ""
            text += f"{packed}: `{_cell(address.member)}`"
        elif address.hash and address.hash != source.get("hash"):
            text += f" (`{address.hash}`)"
        words.append(text)
    return "; else ".join(words)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="datasets; none means all")
    parser.add_argument(
        "--downloads",
        default=os.environ.get("SCMAMBA2_DOWNLOADS", ""),
        help="folder; empty is the user's cache folder",
    )
    parser.add_argument("--verify", action="store_true", help="read every file and compare its checksum")
    parser.add_argument("--markdown", action="store_true", help="print the catalogue instead")
    args = parser.parse_args()

    declared = load_yaml(WORKFLOW / "datasets.yaml", "datasets")
    for name in args.names:
        if name not in declared:
            parser.error(f"unknown dataset {name!r}{closest(name, declared)}")
    entries = {name: declared[name] for name in args.names or declared}
    if args.markdown:
        print("\n".join(document(entries)))
        return 0
    downloads = downloads_folder(args.downloads)
    _show(*take_stock(entries, downloads, verify=args.verify), downloads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
