"""What every method in Python shares: the command line, reading, writing.

A method is a function per task. It gets :class:`Given` and returns an embedding (integration) or labels
(annotation); :func:`main` does the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import anndata as ad
import numpy as np
import pandas as pd
import threadpoolctl

NOT_APPLICABLE = 99


@dataclass
class Given:
    """What a method is given.

    Attributes
    ----------
    adata
        The input: X is log1p of counts per 10,000, ``layers["counts"]`` raw counts,
        ``var["highly_variable"]`` the suite's genes. ``obs`` has ``batch`` (integration), or ``split``
        and ``label`` (annotation: the label is missing for every query cell). A dataset that comes
        log-normalised has no layer of counts, and its X is normalised as it came: a method that models
        counts calls :func:`not_applicable`.
    params
        All parameters that methods.yaml declares, with the values of this run.
    seed, threads, gpu
        Seed of the run; CPU threads; number of GPUs (0: use the CPU).
    resume
        A folder that outlives a kill and goes when the run is ok: a long training keeps its
        checkpoints there and goes on from them. None when run by hand.
    solution
        The answers. None for every method but the oracle.
    files
        What ``files`` of the entry names, if the parameter ``pretrained`` is true: dataset -> source -> path,
        for instance ``files["checkpoint_scgpt"]["weights"]``.
    info
        Fill in what a reader should know: ``scale`` (shown beside the name in tables),
        ``reduced_scale`` (True: no value verdict), ``n_parameters``, ``n_genes``, ``history`` and
        ``selected_epoch`` of a training with ``keep`` (``last`` or ``best``, by ``criterion``), ...
    probes
        Fill in, by name, what the method would have returned otherwise: as its result, for the same cells.
        ``epoch_<n>``: after that epoch; ``order_<k>``: genes in another order; ``padding``; ``cls_last``.
        :func:`main` writes them to ``probes.h5ad`` beside the output.
    """

    adata: ad.AnnData
    params: dict[str, Any]
    seed: int
    threads: int
    gpu: int
    resume: Path | None
    solution: ad.AnnData | None = None
    files: dict[str, dict[str, Path]] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def reference(self) -> ad.AnnData:
        """The cells with labels (annotation)."""
        return self.adata[(self.adata.obs["split"] == "reference").to_numpy()]

    @property
    def query(self) -> ad.AnnData:
        """The cells to label (annotation)."""
        return self.adata[(self.adata.obs["split"] == "query").to_numpy()]

    def highly_variable(self, adata: ad.AnnData | None = None) -> ad.AnnData:
        """The given cells (all by default) on the suite's highly variable genes.

        Those of an annotation task are chosen on the reference; with the parameter ``feature_scope: all``
        on all cells, which lets the query take part.
        """
        adata = self.adata if adata is None else adata
        scopes = {"train": "highly_variable", "all": "highly_variable_all"}
        scope = self.params.get("feature_scope", "train")
        if scope not in scopes:
            raise ValueError(f"feature_scope must be train or all, not {scope!r}")
        column = scopes[scope] if scopes[scope] in adata.var else "highly_variable"
        chosen = adata[:, adata.var[column].to_numpy()]
        self.info["n_genes"] = chosen.n_vars
        return chosen


def dense(matrix: Any) -> np.ndarray:
    """Return a matrix, sparse or not, as a dense float32 array."""
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, dtype=np.float32)


def check_input(adata: ad.AnnData, task: str) -> None:
    """Refuse input that a method would only trip over later, or not notice at all.

    Raises
    ------
    ValueError
        If a column of ``obs`` is missing, reference cells or their labels are, or X is not finite.
    """
    for name in {"integration": ["batch"], "annotation": ["split", "label"]}[task]:
        if name not in adata.obs:
            found = ", ".join(adata.obs.columns) or "none"
            raise ValueError(f"obs column {name!r} is missing (found: {found}); {task} needs it")
    values = adata.X.data if hasattr(adata.X, "indptr") else np.asarray(adata.X)
    if bad := int((~np.isfinite(values)).sum()):
        said = "1 value that is" if bad == 1 else f"{bad} values that are"
        raise ValueError(f"X holds {said} not finite; expected log-normalised values")
    if task == "annotation":
        split = adata.obs["split"]
        for side in ("reference", "query"):
            if not (split == side).any():
                found = ", ".join(map(repr, split.unique()))
                raise ValueError(f"obs column 'split': no cell is {side!r} (found: {found})")
        if bad := int(adata.obs.loc[split == "reference", "label"].isna().sum()):
            raise ValueError(f"obs column 'label': {bad} reference cells have no label")


def not_applicable(reason: str) -> NoReturn:
    """End the run and say that this method cannot do this dataset. It is no failure."""
    print(reason, file=sys.stderr)
    sys.exit(NOT_APPLICABLE)


def main(**functions: Callable[[Given], np.ndarray]) -> None:
    """Run a method from the command line.

    Parameters
    ----------
    **functions
        For each task the function that does it. ``integration`` returns (cells, dimensions) numbers,
        ``annotation`` one label per query cell.
    """
    parser = argparse.ArgumentParser(description="Run this method by hand; see baselines/README.md.")
    parser.add_argument("--task", required=True, choices=sorted(functions))
    parser.add_argument("--input", required=True, type=Path, help="input.h5ad of the prepare step")
    parser.add_argument("--output", required=True, type=Path, help="output.h5ad to write")
    parser.add_argument("--params", type=json.loads, default={}, help="JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--files", type=json.loads, default={}, help="JSON: dataset -> source -> path")
    parser.add_argument("--solution", type=Path, help="answers; given to the oracle only")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    threadpoolctl.threadpool_limits(args.threads)  # by hand as in the suite: threads change last digits

    resume, probes = args.output.parent / "resume", args.output.parent / "probes.h5ad"
    probes.unlink(missing_ok=True)  # those of a run before
    given = Given(
        adata=ad.read_h5ad(args.input),
        params=args.params,
        seed=args.seed,
        threads=args.threads,
        gpu=args.gpu,
        resume=resume if resume.is_dir() else None,
        solution=ad.read_h5ad(args.solution) if args.solution else None,
        files={name: {k: Path(v) for k, v in of.items()} for name, of in args.files.items()},
    )
    check_input(given.adata, args.task)
    result = functions[args.task](given)
    integration = args.task == "integration"
    names = (given.adata if integration else given.query).obs_names
    if given.probes:
        write(probes, names, given.probes, integration)
    output = {"X_emb" if integration else "label_pred": result}
    write(args.output, names, output, integration, json.dumps(given.info))


def write(path: Path, names: pd.Index, values: dict[str, Any], matrices: bool, info: str = "") -> None:
    """Write values of cells as an h5ad file: matrices to ``obsm``, labels to ``obs``; whole or not at all.

    Raises
    ------
    ValueError
        If there are more or fewer rows than names.
    """
    for name, value in values.items():
        if len(value) != len(names):
            raise ValueError(f"the method returned {len(value)} rows, expected {len(names)}, as {name}")
    arrays = {name: np.asarray(value, dtype=None if matrices else object) for name, value in values.items()}
    obs, obsm = ({}, arrays) if matrices else (arrays, {})
    adata = ad.AnnData(
        np.zeros((len(names), 0), dtype=np.float32), obs=pd.DataFrame(obs, index=names), obsm=obsm
    )
    if info:
        adata.uns["info"] = info
    part = path.with_name(f".{path.name}.part")
    adata.write_h5ad(part)
    part.replace(path)
