"""Bins, tokens, masks, vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

from scmamba2.config import Config, resolve
from scmamba2.tokenizer import ABSENT, bin_values, mask_values, tokenize
from scmamba2.vocabulary import Vocabulary

RNG = np.random.default_rng


def binned(rows, **options):
    return bin_values(np.array(rows, dtype=float), **options).toarray().tolist()


def test_plain_bins_by_hand():
    # 5 bins have 4 edges. Values 1 2 3 4: edges 1 2 3 4, so a value is at or above itself.
    assert binned([[0, 1, 2, 3, 4]], n_bins=5) == [[0, 1, 2, 3, 4]]
    # Values 1 1 1 4: edges 1 1 1 4; three edges are at or below 1.
    assert binned([[1, 1, 0, 1, 4]], n_bins=5) == [[3, 3, 0, 3, 4]]
    # Values 2 10: edges 2, 4.67, 7.33, 10.
    assert binned([[10, 0, 2]], n_bins=5) == [[4, 0, 1]]
    # No zero in the row; a single value equals all edges.
    assert binned([[1, 2, 3, 4], [0, 0, 0, 7]], n_bins=5) == [[1, 2, 3, 4], [0, 0, 0, 4]]


def test_spreading_bins_by_hand():
    # Untied values fall where the plain rule puts them.
    rows = [[0, 1, 2, 3, 4]]
    assert binned(rows, n_bins=5, rule="spreading", rng=RNG(0)) == [[0, 1, 2, 3, 4]]
    # Values 1 1 1 4: no edge below 1, three at it, so 1 falls into 1, 2 or 3.
    ones = bin_values(np.tile([1.0, 1, 1, 4], (500, 1)), n_bins=5, rule="spreading", rng=RNG(0)).toarray()
    assert set(ones[:, :3].ravel()) == {1, 2, 3} and set(ones[:, 3]) == {4}


def test_spreading_is_uniform_over_tied_bins():
    tied = np.ones((1, 20_000))
    bins = bin_values(tied, rule="spreading", rng=RNG(0)).toarray().ravel().astype(int)
    counts = np.bincount(bins, minlength=51)
    assert counts[0] == 0 and counts.size == 51
    assert stats.chisquare(counts[1:]).pvalue > 1e-3


@pytest.mark.parametrize("rule", ["plain", "spreading"])
def test_bins_lie_in_range_and_ignore_monotone_transforms(rule):
    x = RNG(0).lognormal(size=(20, 200)) * (RNG(1).random((20, 200)) < 0.6)
    x[3] = 0
    bins = bin_values(x, rule=rule, rng=RNG(2)).toarray()
    assert bins.min() == 0 and bins.max() == 50
    assert ((bins > 0) == (x > 0)).all() and not bins[3].any()
    ranks = np.array([stats.rankdata(row) * (row > 0) for row in x])
    assert (bins == bin_values(ranks, rule=rule, rng=RNG(2)).toarray()).all()


def test_bins_of_sparse_and_dense_agree_and_input_is_unchanged():
    x = RNG(0).poisson(1.0, (5, 30)).astype(float)
    matrix = sparse.csr_matrix(x)
    assert (bin_values(matrix).toarray() == bin_values(x).toarray()).all()
    assert (matrix.toarray() == x).all()


@pytest.mark.parametrize("rule", ["plain", "spreading"])
def test_absent_values_have_no_bin(rule):
    with_absent = binned([[4, ABSENT, 2, 0, 3, 1], [ABSENT] * 6], n_bins=5, rule=rule, rng=RNG(0))
    assert with_absent == [[4, ABSENT, 2, 0, 3, 1], [ABSENT] * 6]


def test_binning_errors():
    with pytest.raises(ValueError, match="plain"):
        bin_values(np.ones((1, 2)), rule="even")
    with pytest.raises(ValueError, match="rng"):
        bin_values(np.ones((1, 2)), rule="spreading")


def tokens_of(rows, ids=None, modalities=None, n_modalities=0, **options):
    config = Config(**{"include_zero_genes": False, **options})
    ids = np.arange(10, 10 + len(rows[0])) if ids is None else np.array(ids)
    rows = np.array(rows, dtype=np.float32)
    return tokenize(rows, ids, 1, 0, config, RNG(0), modalities, n_modalities)


def test_tokens_without_zeros():
    tokens = tokens_of([[5, 0, 3], [0, 0, 2], [0, 0, 0]])
    assert tokens.genes.tolist() == [[1, 10, 12], [1, 12, 0], [1, 0, 0]]
    assert tokens.values.tolist() == [[0, 5, 3], [0, 2, -2], [0, -2, -2]]
    assert tokens.lengths.tolist() == [3, 2, 1]
    assert [a.dtype for a in tokens] == [np.int64, np.float32, np.int64, np.int64]
    assert tokens.modalities.shape == (3, 0)
    assert tokens_of([[5, 0, 3]], cls_value=-2.0).values.tolist() == [[-2, 5, 3]]


def test_tokens_with_zeros():
    tokens = tokens_of([[5, 0, 3], [0, 0, 2]], include_zero_genes=True)
    assert tokens.genes.tolist() == [[1, 10, 11, 12]] * 2
    assert tokens.values.tolist() == [[0, 5, 0, 3], [0, 0, 0, 2]]


@pytest.mark.parametrize("zeros", [True, False])
def test_absent_features_are_no_tokens(zeros):
    rows = [[5, ABSENT, 0, ABSENT], [ABSENT, 1, 2, 3], [ABSENT] * 4]
    tokens = tokens_of(rows, include_zero_genes=zeros, max_length=3)
    assert tokens.genes[0].tolist() == ([1, 10, 12] if zeros else [1, 10, 0])
    assert tokens.lengths.tolist() == [3 if zeros else 2, 3, 1]
    assert set(tokens.genes[1, 1:]) < {11, 12, 13}, "sampled from the features that are there"
    assert tokens.genes[2].tolist() == [1, 0, 0]


def test_unknown_genes_as_pads_keep_their_value():
    tokens = tokens_of([[5, 6, 3], [0, 6, 0]], ids=[10, 0, 12], oov="pad")
    assert tokens.genes.tolist() == [[1, 10, 0, 12], [1, 0, 0, 0]]
    assert tokens.values.tolist() == [[0, 5, 6, 3], [0, 6, -2, -2]]
    assert tokens.lengths.tolist() == [4, 2]
    masked = [mask_values(tokens, 0.7, -1.0, RNG(seed))[1] for seed in range(20)]
    assert np.array(masked)[:, 0, 2].any(), "their value can be hidden"


def test_modalities_follow_their_features():
    modalities = np.array([0, 0, 1])
    tokens = tokens_of([[5, 0, 3], [0, 0, 2]], modalities=modalities, n_modalities=2)
    assert tokens.modalities.tolist() == [[3, 0, 1], [3, 1, 2]]
    names = Vocabulary.from_genes(["RNA", "Protein"])
    assert (names.pad, names.cls) == (2, 3)
    row = np.arange(1, 101)
    sampled = tokens_of([row], modalities=row % 2, n_modalities=2, max_length=21)
    assert (sampled.modalities[0, 1:] == sampled.values[0, 1:] % 2).all()


def test_long_cells_are_sampled():
    row = np.arange(1, 101)
    tokens = tokens_of([row, row * (row <= 10)], max_length=21)
    assert tokens.genes.shape == (2, 21) and tokens.lengths.tolist() == [21, 11]
    kept = tokens.genes[0, 1:]
    assert tokens.genes[0, 0] == 1 and len(set(kept)) == 20
    assert (tokens.values[0, 1:] == kept - 9).all(), "value and gene stay together"
    assert (np.diff(kept) < 0).any(), "sampled genes come in random order"
    assert tokens.genes[1, 1:11].tolist() == list(range(10, 20)), "short cells keep file order"


def test_masks():
    tokens = tokens_of(RNG(0).integers(0, 3, (200, 40)))
    values, mask = mask_values(tokens, 0.4, -1.0, RNG(1))
    assert (mask.sum(1) == ((tokens.lengths - 1) * 0.4).astype(int)).all()
    real = np.arange(mask.shape[1]) < tokens.lengths[:, None]
    assert not mask[:, 0].any() and not mask[~real].any()
    assert (values[mask] == -1).all() and (values[~mask] == tokens.values[~mask]).all()
    again = mask_values(tokens, 0.4, -1.0, RNG(1))[1]
    assert (again == mask).all() and (mask_values(tokens, 0.4, -1.0, RNG(2))[1] != mask).any()
    share = mask[:, 1:].sum(0) / real[:, 1:].sum(0)
    assert abs(share[:15] - 0.38).max() < 0.15, "every position is as likely"


def test_cls_is_masked_in_released_mode_only():
    tokens = tokens_of([[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]])
    masks = np.array([mask_values(tokens, 0.5, -1.0, RNG(seed), mask_cls=True)[1] for seed in range(300)])
    assert (masks.sum(2) == [2, 3]).all(), "int(ratio * tokens), <cls> among them"
    assert not masks[:, 0, 4:].any(), "never a pad"
    assert abs(masks[:, 0, :4].mean(0) - 0.5).max() < 0.1, "<cls> is as likely as a gene"
    assert not mask_values(tokens, 0.99, -1.0, RNG(0))[1][:, 0].any()


def test_zeros_can_be_masked():
    tokens = tokens_of(np.zeros((1, 10)), include_zero_genes=True)
    assert mask_values(tokens, 0.9, -1.0, RNG(0))[1].sum() == 9


def test_vocabulary(tmp_path):
    vocabulary = Vocabulary.from_genes(["B", "A", "B"])
    assert vocabulary.ids == {"B": 0, "A": 1, "<pad>": 2, "<cls>": 3, "<eoc>": 4}
    assert (len(vocabulary), vocabulary.pad, vocabulary.cls) == (5, 2, 3)
    ids, share = vocabulary.lookup(["A", "X", "<pad>", "B"])
    assert ids.tolist() == [1, -1, -1, 0] and share == 0.5
    ids, share = vocabulary.lookup(["A", "X", "<pad>", "B"], oov="pad")
    assert ids.tolist() == [1, 2, 2, 0] and share == 0.5
    with pytest.raises(ValueError, match="oov"):
        vocabulary.lookup(["A"], oov="skip")
    vocabulary.save(tmp_path / "vocab.json")
    assert Vocabulary.load(tmp_path / "vocab.json").ids == vocabulary.ids
    assert [p.name for p in tmp_path.iterdir()] == ["vocab.json"]


@pytest.mark.parametrize(
    ("content", "match"),
    [('{"A": 0, "B": 2}', "0 to 1"), ('["A"]', "object"), ('{"A": "0"}', "integer"), ("{", "bad.json")],
)
def test_bad_vocabularies(tmp_path, content, match):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ValueError, match=match) as caught:
        Vocabulary.load(tmp_path / "bad.json")
    assert "bad.json" in str(caught.value)
    with pytest.raises(ValueError, match="absent.json"):
        Vocabulary.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_layers", 0),
        ("headdim", 48),
        ("dropout", 1.0),
        ("combine", "average"),
        ("value_encoder", "bins"),
        ("readout", "max"),
        ("oov", "keep"),
        ("binning", "even"),
        ("mask_ratio", 1.0),
        ("max_length", 1),
        ("n_bins", 2),
        ("pad_value", 1.0),
        ("mask_value", 0.0),
        ("mask_value", -2.0),
    ],
)
def test_config_names_the_wrong_field(field, value):
    with pytest.raises(ValueError, match=field):
        Config(**{field: value})


def test_category_values_tell_pads_from_bins():
    assert Config(pad_value=0.0).pad_value == 0
    with pytest.raises(ValueError, match="category"):
        Config(pad_value=0.0, value_encoder="category")


def test_resolve():
    assert resolve("d512x24").n_layers == 24
    config = resolve(Config(max_length=7), max_length=9, binning="plain")
    assert (config.max_length, config.binning) == (7, "plain")
    with pytest.raises(ValueError, match="tiny, small"):
        resolve("huge")
