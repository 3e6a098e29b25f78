"""Step 1: bring a dataset's files here and check them.

A file that is downloaded lands in the downloads folder, which checkouts share: `<dataset>/<file>`, and
`archives/<name>` for an archive that files are taken from. A file that a user puts there by hand is taken
as well. A source may list several addresses; they are tried in order. The record says which one served,
and the checksum found.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from workflow.declarations import ROOT, WORKFLOW, load_yaml
from workflow.fetching import hosts, lockfile
from workflow.fetching.addresses import Address, addresses, archive_place, place
from workflow.fetching.archives import DamagedArchive, extract
from workflow.fetching.downloads import download
from workflow.fetching.lockfile import BY_HAND, LOCKFILE, Seen
from workflow.fetching.verification import DiskFull, Expected, FetchError, day, digests, say
from workflow.files import ON_FAILURE, write_json


def downloads_folder(given: str) -> Path:
    """Return the folder of the downloads; empty means the user's cache folder."""
    if given:
        return Path(given).expanduser().absolute()
    import pooch

    return Path(pooch.os_cache("scmamba2")).expanduser()


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


class Fetcher:
    """Brings sources here.

    Parameters
    ----------
    downloads
        Folder of the downloads.
    lock
        Where checksums are recorded that are not declared.
    """

    def __init__(self, downloads: Path, lock: Path = LOCKFILE):
        self.downloads = downloads
        self.lock = lock

    def source(self, dataset: str, name: str, source: Mapping) -> dict:
        """Bring one source here.

        Parameters
        ----------
        dataset, name
            The dataset, and the name of the source in it.
        source
            As in datasets.yaml.

        Returns
        -------
        dict
            ``path``, ``url``, ``sha256``, ``bytes`` and ``hash``: ``verified`` (declared), ``recorded``
            (in datasets.lock, now), ``locked`` (as recorded there), ``local`` (a file of the user's own
            without a checksum) or ``not recorded`` (datasets.lock cannot be written to).

        Raises
        ------
        FetchError
            With what each address answered, and where to put the file by hand.
        """
        target = place(self.downloads, dataset, source)
        choices = addresses(source)
        fixed = Expected(source.get("bytes"), source.get("about_mb"), _declared(source.get("hash")))
        local = choices[0].local
        if not local and not _leftovers(target) and (ready := self._present(target, fixed, choices)):
            return ready  # without a lock, so that a folder that is only read serves too
        try:
            with contextlib.nullcontext() if local else self._alone(target):
                # Another process may have brought it meanwhile.
                ready = None if local else self._present(target, fixed, choices)
                record = ready or self._first_that_serves(choices, target, fixed)
                for path in _leftovers(target):
                    path.unlink()
                return record
        except (FetchError, OSError) as error:
            raise FetchError(f"source {name!r}: {error}") from error

    def _first_that_serves(self, choices: list[Address], target: Path, fixed: Expected) -> dict:
        """Try the addresses in order."""
        answers = []
        if target.is_file() and not choices[0].local:
            answers.append(f"{target}: {fixed.problem(target, target.name)}")
        for address in choices:
            try:
                return self._bring(address, target, fixed)
            except DiskFull as error:
                # an archive needs more room than the file alone, which another address may serve
                if address.archive is None or all(a.archive for a in choices):
                    raise
                answers.append(str(error))
                say(answers[-1])
            except Exception as error:  # whatever is wrong with an address, the next one may serve
                text = " ".join(str(error).split())
                if not isinstance(error, (FetchError, OSError)):
                    text = f"{type(error).__name__}: {text}"
                answers.append(text if address.url in text else f"{address.url}: {text}")
                say(answers[-1])
        text = "; ".join(answers)
        # What differs from datasets.lock says itself what to do: the same file again would not help.
        raise FetchError(text if str(self.lock) in text else self._by_hand(choices, target) + text)

    def _by_hand(self, choices: list[Address], target: Path) -> str:
        if all(address.local for address in choices):
            return ""
        packed = next((a for a in choices if a.archive and not a.local), None)
        archive = f" (or the archive to {archive_place(self.downloads, packed)})" if packed else ""
        return f"get the file by hand and put it at {target}{archive}, because: "

    @contextlib.contextmanager
    def _alone(self, target: Path) -> Iterator[None]:
        """Keep other processes away from a file."""
        folder = self.downloads / ".locks"
        lock = FileLock(folder / f"{target.parent.name}.{target.name}.lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                say(f"waiting for another process that fetches {target}")
                lock.acquire()
        except OSError as error:  # Timeout is one, but is dealt with above
            raise FetchError(
                f"files cannot be made or locked in {self.downloads} ({error.strerror}); name another folder "
                "by `downloads:` in the configuration or SCMAMBA2_DOWNLOADS"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _expected(self, path: Path, fixed: Expected) -> Expected:
        """Add what datasets.lock knows of a file for which no checksum is declared."""
        seen = lockfile.read(self.lock).get(self._key(path))
        if fixed.hashes or seen is None:
            return fixed
        origin = "when it was found on disk" if seen.url == BY_HAND else f"from {seen.url}"
        who = (
            f"recorded on {seen.date}, {origin}; if you trust the file of now, delete the line of "
            f"{self._key(path)} in {self.lock}"
        )
        return Expected(fixed.bytes, fixed.about_mb, {f"sha256:{seen.sha256}": who})

    def _key(self, path: Path) -> str:
        return path.relative_to(self.downloads).as_posix()

    def _present(self, target: Path, fixed: Expected, choices: list[Address]) -> dict | None:
        """Take a file that is there already.

        One that is not what is declared is left where it is, and replaced if an address serves the right
        one. One that differs from datasets.lock is an error: either may be right.
        """
        if not target.is_file():
            return None
        if fixed.problem(target, target.name):
            return None
        if not fixed.hashes:
            for address in choices:  # an address that serves the file itself may know its checksum
                own = Expected(address.bytes, None, _declared(address.hash))
                if own.hashes and not address.member and not own.problem(target, target.name):
                    return self._record(target, address.url, own)
        if wrong := self._expected(target, fixed).problem(target, target.name):
            raise FetchError(f"{target}: {wrong}")
        return self._record(target, choices[0].url if fixed.hashes else BY_HAND, fixed)

    def _record(self, path: Path, url: str, expected: Expected) -> dict:
        """Describe a file that is what it must be, and see to it that its checksum is known next time."""
        sha256, size = digests(path)["sha256"], path.stat().st_size
        if expected.hashes:
            state = "verified"
        elif not path.is_relative_to(self.downloads):
            state = "local"
        else:
            key, guard = self._key(path), lockfile.guard_of(self.downloads)
            seen = lockfile.read(self.lock).get(key)
            state = "locked"
            if seen is None or seen.url == BY_HAND != url:
                now = lockfile.record(key, Seen(sha256, size, day(), url), guard, self.lock)
                state = state if seen else "recorded" if now else "not recorded"
            elif url == BY_HAND:
                url = seen.url
        return {"path": str(path), "url": url, "sha256": sha256, "bytes": size, "hash": state}

    def _bring(self, address: Address, target: Path, fixed: Expected) -> dict:
        """Have the file from one address."""
        if address.member is not None:
            return self._from_archive(address, target, fixed)
        own = Expected(address.bytes, address.about_mb, {**_declared(address.hash), **fixed.hashes})
        if address.local:
            path = locate(address.url)
            if wrong := own.problem(path, path.name):
                raise FetchError(wrong)
            return self._record(path, address.url, own)
        download(address.url, target, self._expected(target, own), hosts.locate)
        return self._record(target, address.url, own)

    def _from_archive(self, address: Address, target: Path, fixed: Expected) -> dict:
        """Have the file out of an archive, which is fetched first if it is not here."""
        own = Expected(address.bytes, address.about_mb, _declared(address.hash))
        if address.local:
            archive = locate(address.url)
            if wrong := own.problem(archive, archive.name):
                raise FetchError(wrong)
            fresh = False
        else:
            archive = archive_place(self.downloads, address)
            with self._alone(archive):
                expected = self._expected(archive, own)
                wrong = expected.problem(archive, archive.name) if archive.is_file() else "not here"
                if archive.is_file() and wrong and not own.hashes:
                    raise FetchError(f"{archive}: {wrong}; delete it, or put the right one there")
                fresh = bool(wrong)
                if fresh:  # as with a file, a wrong one is replaced by one that is what is declared
                    try:
                        download(address.url, archive, expected, hosts.locate)
                    except FetchError as error:
                        if archive.is_file() and not isinstance(error, DiskFull):
                            raise FetchError(f"{archive}: {wrong}; {error}") from error
                        raise
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.member.part")
        try:
            extract(archive, address.member or "", part, fixed.bytes)
            expected = self._expected(target, fixed)
            if wrong := expected.problem(part, target.name):
                raise FetchError(f"{address.member!r} in {archive}: {wrong}")
            os.replace(part, target)
        except DamagedArchive as error:
            if fresh and not own.hashes:  # what nobody vouches for and cannot be read is junk
                archive.unlink()
                raise DamagedArchive(f"{error}; it was deleted") from error
            raise
        finally:
            part.unlink(missing_ok=True)
        if not address.local:
            self._record(archive, address.url if fresh else BY_HAND, own)
        return self._record(target, address.url, fixed)


def _declared(known: str | None) -> dict[str, str]:
    return {known: "declared in workflow/datasets.yaml"} if known else {}


def _leftovers(target: Path) -> list[Path]:
    """Return pieces of a file: of an address that gave up, of a process that was killed."""
    if not target.parent.is_dir():
        return []
    own = (f"{target.name}.part", f"{target.name}.part.json", f"{target.name}.member.part")
    return [
        path for path in target.parent.iterdir() if path.name in own or path.name.startswith(f"{own[2]}.")
    ]


def fetch(dataset: str, entry: Mapping, fetcher: Fetcher) -> dict:
    """Bring every source of a dataset here.

    Parameters
    ----------
    dataset
        Its name.
    entry
        Its declaration.
    fetcher
        Who brings it.

    Returns
    -------
    dict
        The record: ``status`` is ``ok`` or ``no_data``; ``reason`` tells of every source that could not
        be had; ``absent`` has the reasons for optional ones, which cost nothing.
    """
    record: dict = {"dataset": dataset, "status": "ok", "reason": "", "files": {}, "absent": {}}
    reasons = []
    for name, source in entry["sources"].items():
        try:
            record["files"][name] = fetcher.source(dataset, name, source)
        except FetchError as error:
            if source.get("optional"):
                record["absent"][name] = str(error)
                say(f"{dataset}: goes on without {name!r}: {error}")
            else:
                reasons.append(str(error))
    if reasons:
        record |= {"status": "no_data", "reason": "; ".join(reasons)}
    return record


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
    try:
        record = fetch(args.dataset, entry, Fetcher(downloads_folder(args.downloads)))
    except KeyboardInterrupt:
        say("stopped; what has arrived stays, and the next run goes on from there")
        return 130
    if record["status"] != "ok":
        say(f"{args.dataset}: {record['reason']}")
        if args.on_failure == "stop":
            return 1
        # what has a record is not made again
        again = f"python -m workflow.steps.forget {args.record.parent.parent.parent}"
        record["reason"] += f"; then {again}, and the same command again"
    write_json(args.record, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
