"""Members of archives: the right bytes, or one clear sentence, and nothing anywhere else."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from workflow.fetching import archives, verification
from workflow.fetching.archives import ArchiveError, DamagedArchive, extract
from workflow.fetching.verification import DiskFull

#: Synthetic bytes that do not compress.
CONTENT = np.random.default_rng(1).bytes(100_000)


def make_zip(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def make_tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def make_tar_gz(members: dict[str, bytes]) -> bytes:
    return make_tar(members, "w:gz")


@pytest.fixture
def take(tmp_path):
    """A function that takes a member out of an archive's bytes, and checks that nothing else appears."""
    archive, folder = tmp_path / "packed" / "archive", tmp_path / "packed" / "out"
    folder.mkdir(parents=True)

    def run(packed: bytes, member: str, **more) -> bytes:
        archive.write_bytes(packed)
        path = folder / "member"
        try:
            extract(archive, member, path, **more)
            content = path.read_bytes()
            path.unlink()
            return content
        finally:
            left = [p for p in tmp_path.rglob("*") if p not in (archive, folder, folder.parent)]
            assert left == [], "something was left, or went where no one asked for it"

    return run


MAKERS = [make_zip, make_tar, make_tar_gz]


@pytest.mark.parametrize("make", MAKERS)
def test_a_member(take, make):
    packed = make({"deep/er/cells.h5ad": CONTENT, "other": b"x"})
    assert take(packed, "deep/er/cells.h5ad") == CONTENT
    assert take(packed, "deep/er/cells.h5ad", size=len(CONTENT)) == CONTENT


def test_a_gz_holds_one_file(take):
    assert take(gzip.compress(CONTENT), "whatever.h5ad") == CONTENT


def test_a_tar_that_was_made_of_a_folder(take):
    assert take(make_tar({"./norman/cells.h5ad": CONTENT}), "norman/cells.h5ad") == CONTENT


@pytest.mark.parametrize("outer", MAKERS)
@pytest.mark.parametrize("inner", [*MAKERS, lambda members: gzip.compress(CONTENT)])
def test_archives_in_archives(take, outer, inner):
    packed = outer({"top/ms.packed": inner({"ms/cells.h5ad": CONTENT})})
    assert take(packed, "top/ms.packed!ms/cells.h5ad") == CONTENT


def test_three_deep(take):
    packed = make_zip({"a": make_tar_gz({"b": make_zip({"c": CONTENT})})})
    assert take(packed, "a!b!c") == CONTENT


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_there_is_told(take, make):
    packed = make({"norman/perturb_processed.h5ad": b"", **{f"norman/{i}.pkl": b"" for i in range(12)}})
    with pytest.raises(ArchiveError) as caught:
        take(packed, "perturb_processed.h5ad")
    message = str(caught.value)
    assert (
        "holds no 'perturb_processed.h5ad', but 'norman/perturb_processed.h5ad'" in message
    )  # the closest first
    assert message.endswith("and 5 more")
    with pytest.raises(ArchiveError, match="archive!norman/0.pkl: "):
        take(packed, "norman/0.pkl!x")


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil"])
def test_a_name_that_leads_out_is_refused(take, make, name):
    packed = make({name: b"evil", "good": CONTENT})
    with pytest.raises(ArchiveError, match="leads out of the archive"):
        take(packed, name)
    assert take(packed, "good") == CONTENT  # names of others are never used


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_a_tar_member_that_is_no_file_is_refused(take, kind):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        secret = tarfile.TarInfo("secret")
        secret.size = 1
        archive.addfile(secret, io.BytesIO(b"s"))
        info = tarfile.TarInfo("cells.h5ad")
        info.type, info.linkname = kind, "secret"
        archive.addfile(info)
    with pytest.raises(ArchiveError, match="'cells.h5ad' is no file but a folder, link or device"):
        take(packed.getvalue(), "cells.h5ad")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFDIR])
def test_a_zip_member_that_is_no_file_is_refused(take, mode):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        info = zipfile.ZipInfo("cells.h5ad")
        info.external_attr = (mode | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ArchiveError, match="is no file but a folder, link or device"):
        take(packed.getvalue(), "cells.h5ad")


@pytest.mark.parametrize(
    "pack", [lambda c: make_zip({"m": c}), lambda c: make_tar_gz({"m": c}), gzip.compress]
)
def test_a_bomb(take, pack, monkeypatch):
    """10 MB of zeros in 10 kB, with bounds brought down to that."""
    packed = pack(b"\0" * 10_000_000)
    assert len(packed) < 40_000
    assert len(take(packed, "m")) == 10_000_000  # small enough to be harmless
    monkeypatch.setattr(archives, "ALWAYS_FINE", 1_000_000)
    with pytest.raises(ArchiveError, match=r"than the \d+ that \d+ packed bytes may become"):
        take(packed, "m")
    assert len(take(packed, "m", size=10_000_000)) == 10_000_000  # declared, so it is right
    monkeypatch.setattr(archives, "MAX_RATIO", 10**6)
    monkeypatch.setattr(archives, "MAX_BYTES", 5_000_000)
    with pytest.raises(ArchiveError, match="than the 5000000 that"):
        take(packed, "m")


def test_a_bomb_in_an_archive(take, monkeypatch):
    monkeypatch.setattr(archives, "ALWAYS_FINE", 1_000_000)
    packed = make_zip({"outer": make_zip({"m": b"\0" * 10_000_000})})
    with pytest.raises(ArchiveError, match="archive!outer: 'm' has"):
        take(packed, "outer!m")


def test_a_zip_that_lies_about_a_size(take):
    """The directory says 10 bytes; the member has 100,000."""
    packed = bytearray(make_zip({"m": CONTENT}))
    entry = packed.rindex(b"PK\x01\x02")
    packed[entry + 24 : entry + 28] = struct.pack("<I", 10)
    with pytest.raises(DamagedArchive):
        take(bytes(packed), "m")


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("size", [5, 200_000])
def test_a_member_must_have_its_declared_size(take, make, size):
    with pytest.raises(ArchiveError, match=rf"100000 bytes, (more than the|expected) {size}"):
        take(make({"m": CONTENT}), "m", size=size)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_an_archive_that_was_cut(take, make, share):
    packed = make({"m": CONTENT})
    with pytest.raises(DamagedArchive, match="cut off or damaged|found no"):
        take(packed[: int(share * len(CONTENT))], "m")


def test_a_gz_that_was_cut(take):
    packed = gzip.compress(CONTENT)
    for length in (15, 50_000, len(packed) - 4):
        with pytest.raises(DamagedArchive, match="cut off or damaged"):
            take(packed[:length], "m")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit(take, method):
    packed = bytearray(make_zip({"m": CONTENT}, method))
    packed[50_000] ^= 1
    with pytest.raises(DamagedArchive, match="cut off or damaged"):
        take(bytes(packed), "m")


def test_no_archive(take):
    with pytest.raises(DamagedArchive, match="found no zip, tar or gzip file: it begins with b'<html>'"):
        take(b"<html>", "m")


def test_a_password(take):
    packed = bytearray(make_zip({"m": CONTENT}))
    packed[6] |= 1  # the flag stands before the member and in the directory
    packed[packed.rindex(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(ArchiveError, match="'m' cannot be read .*password"):
        take(bytes(packed), "m")


def test_a_method_of_packing_that_python_does_not_know(take):
    packed = bytearray(make_zip({"m": CONTENT}))
    packed[8] = packed[packed.rindex(b"PK\x01\x02") + 10] = 9  # deflate64
    with pytest.raises(ArchiveError, match="'m' cannot be read"):
        take(bytes(packed), "m")


def test_there_must_be_room(take, monkeypatch):
    monkeypatch.setattr(verification.shutil, "disk_usage", lambda folder: FreeFive)
    with pytest.raises(DiskFull, match="needs 100.0 kB more"):
        take(make_zip({"m": CONTENT}), "m")


class FreeFive:
    free = 5


def test_a_disk_that_becomes_full(take, monkeypatch):
    class Full(io.BufferedWriter):
        def write(self, data):
            raise OSError(28, "No space left on device")

    def full(path, mode):
        return Full(io.FileIO(path, "w")) if mode == "wb" else open(path, mode)

    monkeypatch.setattr(archives, "open", full, raising=False)
    with pytest.raises(
        DiskFull, match="the disk became full while .* was written; what was unpacked is deleted"
    ):
        take(gzip.compress(CONTENT), "m")
