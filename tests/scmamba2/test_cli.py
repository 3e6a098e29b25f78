"""The command line, as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys

import anndata as ad
import numpy as np
import pytest

from scmamba2 import checkpoints
from scmamba2.cli import main


@pytest.fixture
def file(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def call(*arguments):
    return main([str(a) for a in arguments])


def finetune(task, key, file, output, *more):
    options = ["--key", key, "--output", output, "--epochs", 2, "--learning-rate", 0.002, *more]
    return call("finetune", task, file, *options)


def test_fine_tune_embed_and_go_on(file, tmp_path, capsys):
    model = tmp_path / "model"
    assert finetune("integration", "batch", file, model) == 0
    assert "100.0% of the genes known, 2 epochs" in capsys.readouterr().out
    lines = (tmp_path / "model.training" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line).get("epoch") for line in lines] == [None, 1, 2]
    output = tmp_path / "out.h5ad"
    assert call("embed", file, "--model", model, "--output", output) == 0
    whole = ad.read_h5ad(output)
    assert whole.shape == (120, 40) and whole.obsm["X_scmamba2"].shape == (120, 64)
    assert call("embed", file, "--model", model, "--output", output, "--backed") == 0
    light = ad.read_h5ad(output)
    assert light.shape == (120, 0) and list(light.obs["batch"]) == list(whole.obs["batch"])
    np.testing.assert_allclose(light.obsm["X_scmamba2"], whole.obsm["X_scmamba2"], atol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells.h5ad", "model", "model.training", "out.h5ad"]

    second = tmp_path / "second"
    assert finetune("annotation", "label", file, second, "--model", model, "--quiet") == 0
    assert call("predict", file, "--model", second, "--output", output) == 0
    capsys.readouterr()
    assert call("predict", file, "--model", second, "--output", output, "--quiet") == 0
    assert capsys.readouterr().out == ""
    obs = ad.read_h5ad(output).obs
    assert set(obs["scmamba2_label"]) <= {"type 0", "type 1", "type 2"}
    assert obs["scmamba2_probability"].between(1 / 3 - 1e-6, 1 + 1e-6).all()


def test_convert_both_ways(file, tmp_path, capsys):
    finetune("annotation", "label", file, tmp_path / "model")
    assert call("convert", tmp_path / "model", tmp_path / "published", "--to-published") == 0
    names = {p.name for p in (tmp_path / "published").iterdir()}
    assert names == {"args.json", "best_model.pt", "vocab.json"}
    assert call("convert", tmp_path / "published", tmp_path / "back") == 0
    assert "loaded" in capsys.readouterr().out
    first, back = (checkpoints.load(tmp_path / name).model.state_dict() for name in ("model", "back"))
    assert first.keys() == back.keys() and all((first[k] == back[k]).all() for k in first)


def test_doctor(file, tmp_path, capsys):
    assert call("doctor") == 0
    said = capsys.readouterr().out
    assert "backend blocked: the device is cpu" in said and "mamba-ssm" in said and "bfloat16" in said
    finetune("annotation", "label", file, tmp_path / "model")
    assert call("doctor", tmp_path / "model") == 0
    assert "Annotator, 64 wide, 2 layers, 43 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("embed {f} --model {t}/no --output {t}/o.h5ad", "no/config.json cannot be read"),
        ("embed {t}/no.h5ad --model {t} --output {t}/o.h5ad", "no.h5ad does not exist"),
        ("embed {t}/text.h5ad --model {t} --output {t}/o.h5ad", "text.h5ad cannot be read as h5ad"),
        ("embed {f} --model {t} --output {t}/o.csv", "must end in .h5ad"),
        ("embed {f} --model {t} --output {f}", "is the file to read"),
        ("embed {f} --model {t} --output {t}/no/o.h5ad", "does not exist"),
        ("finetune integration {f} --key donor --output {t}/m", "no batch column 'donor'"),
        ("finetune annotation {f} --key label --output {t}/m --preset huge", "unknown preset 'huge'"),
        ("finetune annotation {f} --key label --output {t}", "is there already and is not a checkpoint"),
        ("finetune annotation {f} --key label --output {t}/m --epochs 0", "epochs must be a whole number"),
        ("finetune annotation {f} --key label --output {t}/m --device banana", "must be cpu, cuda or auto"),
        ("convert {t}/no {t}/m", "args.json cannot be read"),
        ("doctor {t}", "config.json cannot be read"),
    ],
)
def test_errors_are_one_line(file, tmp_path, capsys, arguments, message):
    (tmp_path / "text.h5ad").write_text("not an h5ad file")
    before = sorted(tmp_path.iterdir())
    assert main([a.format(f=file, t=tmp_path) for a in arguments.split()]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and message in lines[-1]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["", "embed", "finetune", "predict", "convert", "doctor", "census"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*filter(None, [command]), "--help"])
    assert end.value.code == 0 and "usage: scmamba2" in capsys.readouterr().out


def test_wrong_usage():
    with pytest.raises(SystemExit) as end:
        main(["embed"])
    assert end.value.code == 2


def test_help_and_version_do_not_import_torch():
    code = (
        "import sys, scmamba2.cli as c\n"
        "try: c.main(['--version'])\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
