"""GEARS' files about genes: made-up ones in the layout of the real ones, and hostile ones."""

from __future__ import annotations

import functools
import os
import pickle
from pathlib import Path

import pandas as pd
import pytest

from workflow.recipes import _old_pickle, gene2go

TERMS = {
    "KLF1": {"GO:0005515", "GO:0003677"},
    "BAK1": {"GO:0005515"},
    "NAN": {"GO:0005886"},
    "LONELY": set(),
}
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Smuggled:
    """An object whose pickle calls a function when it is loaded in the ordinary way."""

    def __init__(self, function, *args) -> None:
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_gene2go(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "gene2go_all.pkl"
    path.write_bytes(pickle.dumps(TERMS, protocol=protocol))
    found = gene2go.read_gene2go(path)
    assert found == TERMS and all(type(ids) is set for ids in found.values())


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ["system", "eval", "partial", "touch", "getattr"])
@pytest.mark.parametrize("place", ["whole", "key", "value", "term"])
def test_a_pickle_that_calls_something_does_nothing(
    tmp_path: Path, monkeypatch, protocol: int, name: str, place: str
) -> None:
    trace, path = tmp_path / "trace", tmp_path / "gene2go_all.pkl"
    evil = Smuggled(
        *{
            "system": (os.system, f"touch {trace}"),
            "eval": (eval, f"open({str(trace)!r}, 'w')"),
            "partial": (functools.partial, os.system, f"touch {trace}"),
            "touch": (Path.touch, trace),
            "getattr": (getattr, set, "__subclasses__"),
        }[name]
    )
    content = {
        "whole": evil,
        "key": TERMS | {evil: {"GO:0005515"}},
        "value": TERMS | {"TP53": evil},
        "term": TERMS | {"TP53": {"GO:0005515", evil}},
    }[place]
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    loaded = []
    with monkeypatch.context() as watch:  # it is refused before it is loaded ...
        watch.setattr(_old_pickle._Unpickler, "load", loaded.append)
        with pytest.raises(
            ValueError, match="gene2go_all.pkl: found a pickle that is not read .*not admitted"
        ):
            gene2go.read_gene2go(path)
    with pytest.raises(pickle.UnpicklingError, match="not admitted"):  # ... and would be while it is loaded
        _old_pickle._Unpickler(path.read_bytes(), _old_pickle._SETS).load()
    assert not loaded and not trace.exists()
    if name in ("system", "touch") and place == "value":  # the same bytes do run in the ordinary way
        pickle.loads(path.read_bytes())
        assert trace.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # a call, written by hand
        b"(S'true'\nios\nsystem\n.",  # the same with the old operation for instances
        b"(cos\nsystem\nS'true'\no.",
        b"cbuiltins\nset.__subclasses__\n(tR.",  # a way round by dots
        b"c__builtin__\neval\n.",
        b"\x80\x02\x82\x01.",  # a name from the registry of extensions
        b"Pplace\n.",  # a reference to an outside object
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"<html>a download that failed</html>",
        b"",
        # sets have another order in another process; under one name tests can be shared among several
        pytest.param(pickle.dumps(TERMS)[:-9], id="cut short"),
    ],
)
def test_other_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "gene2go_all.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="gene2go_all.pkl: found a pickle that is not read") as caught:
        gene2go.read_gene2go(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([*TERMS], "it holds no dict"),
        ({1: {"GO:0005515"}}, "entry 1 is no set of text"),
        ({"KLF1": ["GO:0005515"]}, "entry 'KLF1' is no set of text"),
        ({"KLF1": {"GO:0005515", 5515}}, "entry 'KLF1' is no set of text"),
        ({"KLF1": {"GO:0005515": 1}}, "entry 'KLF1' is no set of text"),
        ({"KLF1": {b"GO:0005515"}}, "found a pickle that is not read"),
        ({"KLF1": {"protein binding"}}, "key 'KLF1': found 'protein binding', expected ids such as GO:"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, protocol: int, content, message: str) -> None:
    path = tmp_path / "gene2go_all.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(ValueError, match=message):
        gene2go.read_gene2go(path)


def test_go_graph(tmp_path: Path) -> None:
    edges = pd.DataFrame(
        [("KLF1", "KLF1", 1.0), ("KLF1", "NA", 0.25), ("NA", "KLF1", 0.25), ("NAN", "NAN", 1.0)],
        columns=["source", "target", "importance"],
    )
    path = tmp_path / "go_essential_all.csv"
    edges.to_csv(path, index=False)
    found = gene2go.read_go_graph(path)
    assert found.astype({"source": object, "target": object}).equals(edges)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source,target\nA,B\n", "found columns source, target, expected source, target, importance"),
        (",source,target,importance\n0,A,B,1\n", "found columns Unnamed: 0, source, target, importance"),
        ("source,target,importance\n,B,1\n", "columns source and target: found an empty gene name"),
        (
            "source,target,importance\nA,B,2\nA,B,0\n",
            "column 'importance': found 2 values such as 2, expected",
        ),
        ("source,target,importance\nA,B,high\n", "found no readable csv"),
        ("", "found no readable csv"),
    ],
)
def test_another_graph_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "go_essential_all.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"go_essential_all.csv: {message}"):
        gene2go.read_go_graph(path)
