"""The network: names, sizes, invariances."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from layout import expected_keys, generator_keys
from torch import nn

from scmamba2.config import PRESETS, Config
from scmamba2.model.backbone import Backbone, Layer
from scmamba2.model.embeddings import BinEncoder, DomainBatchNorm
from scmamba2.model.generator import Generator
from scmamba2.model.heads import BatchDiscriminator
from scmamba2.model.losses import elastic_similarity, nonzero_nll, squared_error
from scmamba2.model.network import ScMamba2
from scmamba2.ops.reference import mamba2, reverse

SMALL = Config(d_model=32, n_layers=2, d_state=8, headdim=16, chunk_size=8)


@pytest.mark.parametrize(
    ("d_model", "expected"),
    [(512, 1_653_424), (768, 3_665_608), (1024, 6_468_320), (1536, 14_445_328)],
)
def test_parameters_per_layer(d_model, expected):
    with torch.device("meta"):
        layer = Layer(Config(d_model=d_model))
    assert sum(p.numel() for p in layer.parameters()) == expected


def test_parameters_of_the_whole_body_model():
    with torch.device("meta"):
        model = ScMamba2(PRESETS["whole_body_1536x36"], 60_697)
    assert model.count_parameters() == 625_088_066


@pytest.mark.parametrize(
    ("preset", "without_genes"),
    [
        ("tiny", 90_318),
        ("small", 553_906),
        ("d512x12", 21_161_538),
        ("d512x24", 41_002_626),
        ("whole_body_1536x36", 531_857_474),
    ],
)
def test_parameters_of_the_presets(preset, without_genes):
    config = PRESETS[preset]
    with torch.device("meta"):
        model = ScMamba2(config, 10)
    assert model.count_parameters() == without_genes + 10 * config.d_model
    assert (
        Path(__file__).parents[2].joinpath("scmamba2/config.py").read_text().count(f"{without_genes:,}") == 1
    )


def test_state_dict_of_the_plain_model():
    model = ScMamba2(Config(d_model=512, n_layers=2), 100, pad_id=97)
    shapes = {key: tuple(t.shape) for key, t in model.state_dict().items()}
    assert shapes == expected_keys(512, 2, 100, 512, 0, 1, False, False, False, False)


def test_state_dict_with_all_heads_and_round_trip():
    config = Config(d_model=512, n_layers=2, dsbn=True)
    heads = {"n_batches": 3, "n_classes": 7, "explicit_zeros": True, "mvc": True}
    heads["n_modalities"] = 2
    model = ScMamba2(config, 100, pad_id=97, adversarial=True, **heads)
    shapes = {key: tuple(t.shape) for key, t in model.state_dict().items()}
    assert shapes == expected_keys(512, 2, 100, 1024, 3, 7, True, True, True, True, modalities=2)
    other = ScMamba2(config, 100, pad_id=97, adversarial=True, **heads)
    other.load_state_dict(model.state_dict())
    for key, tensor in other.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key])


@pytest.mark.parametrize("zeros", [True, False])
def test_state_dict_of_the_generator(zeros):
    model = Generator(Config(d_model=512, n_layers=2), 100, pad_id=97, explicit_zeros=zeros)
    shapes = {key: tuple(t.shape) for key, t in model.state_dict().items()}
    assert shapes == generator_keys(512, 2, 100, zeros)


def test_initial_values_of_the_mixer():
    torch.manual_seed(0)
    mixer = Layer(Config(d_model=1024)).mamba
    step = nn.functional.softplus(mixer.dt_bias)
    assert 1e-3 <= step.min() * 1.001 and step.max() <= 0.1 * 1.001
    assert 1 <= mixer.A_log.exp().min() and mixer.A_log.exp().max() <= 16
    assert (mixer.D == 1).all() and (mixer.norm.weight == 1).all()
    table = ScMamba2(SMALL, 100, pad_id=97).encoder.embedding.weight
    assert table.abs().max() <= 0.1 and table[97].any()


@pytest.mark.parametrize("combine", ["mean", "sum", "sum_residual_once"])
def test_layer_equals_two_passes_with_reversals(combine):
    torch.manual_seed(0)
    layer = Layer(dataclasses.replace(SMALL, combine=combine)).double()
    mixer, lengths = layer.mamba, torch.tensor([20, 9])
    x = torch.randn(2, 20, 32, dtype=torch.float64)

    def one_direction(x):
        return mamba2(x, mixer.weights())

    forward, back = one_direction(x), reverse(one_direction(reverse(x, lengths)), lengths)
    expected = {
        "mean": ((forward + x) + (back + x)) / 2,
        "sum": (forward + x) + (back + x),
        "sum_residual_once": forward + back + x,
    }[combine]
    real = torch.arange(20) < lengths[:, None]
    torch.testing.assert_close(layer(x, lengths)[real], expected[real], rtol=0, atol=1e-12)


def cells(b=3, length=15, n_tokens=40):
    generator = torch.Generator().manual_seed(0)
    genes = torch.randint(0, n_tokens - 3, (b, length), generator=generator)
    values = torch.randint(0, 51, (b, length), generator=generator).float()
    lengths = torch.tensor([length, length // 2, 1][:b])
    pad = torch.arange(length) >= lengths[:, None]
    genes[:, 0], values[:, 0] = n_tokens - 2, 0
    genes[pad], values[pad] = n_tokens - 3, -2
    return genes, values, lengths


def test_padding_does_not_change_a_cell():
    torch.manual_seed(0)
    model = ScMamba2(SMALL, 40, pad_id=37).eval()
    genes, values, lengths = cells()
    together = model(genes, values, lengths)
    for i, n in enumerate(lengths):
        alone = model(genes[i : i + 1, :n], values[i : i + 1, :n], lengths[i : i + 1])
        assert (together[i, :n] - alone[0]).abs().max() <= 1e-5


def test_reversed_cells_give_reversed_states():
    torch.manual_seed(0)
    model = ScMamba2(SMALL, 40, pad_id=37).eval()
    genes, values, lengths = cells()
    out = model(genes, values, lengths)
    mirrored = model(reverse(genes, lengths), reverse(values, lengths), lengths)
    torch.testing.assert_close(reverse(mirrored, lengths), out, rtol=0, atol=1e-5)


def test_every_parameter_that_is_used_gets_a_gradient():
    model = ScMamba2(SMALL, 40, pad_id=37, n_classes=3)
    hidden = model(*cells())
    value, nonzero = model.decode_tokens(hidden[:, 1], None)
    assert nonzero is None
    (model.cls_decoder(hidden[:, 0]).sum() + value.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert not model.encoder.embedding.weight.grad[37].any()


@pytest.mark.parametrize(("batches", "modalities"), [(2, 0), (0, 2), (2, 2)])
def test_decoders_read_the_source_of_a_token(batches, modalities):
    torch.manual_seed(0)
    model = ScMamba2(SMALL, 40, n_batches=batches, n_modalities=modalities, mvc=True)
    hidden, genes = torch.randn(5, 32), torch.arange(5)
    b = torch.tensor([0, 1, 0, 1, 0]) if batches else None
    m = torch.tensor([0, 0, 1, 1, 0]) if modalities else None
    source, first = torch.zeros(5, 32), torch.zeros(5, 32)
    if b is not None:
        source, first = source + model.batch_encoder(b), first + model.batch_encoder(b)
    if m is not None:
        source = source + model.mod_encoder(m)
        first = first + model.mod_encoder(torch.full((5,), 3))  # of <cls>
    value, _ = model.decode_tokens(hidden, b, m)
    torch.testing.assert_close(value, model.decoder(torch.cat([hidden, source], 1))[0])
    value, _ = model.decode_cells(genes, hidden, b, m)
    gene = torch.cat([model.encoder(genes), source], 1)
    expected = model.mvc_decoder(gene, torch.cat([hidden, first], 1))[0]
    torch.testing.assert_close(value, expected)
    with pytest.raises(ValueError, match="batches" if batches else "modalities"):
        model.decode_tokens(hidden, None, None)


def test_model_without_a_cell_decoder_says_so():
    with pytest.raises(ValueError, match="mvc"):
        ScMamba2(SMALL, 40).decode_cells(torch.arange(2), torch.zeros(2, 32), None)


def test_cell_decoder_by_hand():
    head = ScMamba2(SMALL, 40, mvc=True, explicit_zeros=True).mvc_decoder
    gene, cell = torch.randn(3, 32), torch.randn(3, 32)
    query = torch.sigmoid(gene @ head.gene2query.weight.T + head.gene2query.bias)
    value, nonzero = head(gene, cell)
    torch.testing.assert_close(value, torch.einsum("mi,ij,mj->m", cell, head.W.weight, query))
    zero = head.W_zero_logit
    torch.testing.assert_close(nonzero, ((query @ zero.weight.T + zero.bias) * cell).sum(1))


def test_read_outs():
    hidden = torch.arange(12.0).view(2, 3, 2)
    values, lengths = torch.tensor([[0, 3, 1], [0, -1, -2.0]]), torch.tensor([3, 2])

    def read(readout):
        model = ScMamba2(dataclasses.replace(SMALL, readout=readout), 40)
        return model.read_cell(hidden, values, lengths).tolist()

    assert read("cls") == [[0, 1], [6, 7]]
    assert read("average") == [[2, 3], [7, 8]], "a pad is no part of the mean"
    assert read("weighted") == [[2.5, 3.5], [0, 0]], "<cls>, pads and hidden values weigh nothing"


def test_value_encoders():
    genes, values, lengths = cells()
    scaling = ScMamba2(dataclasses.replace(SMALL, value_encoder="scaling"), 40).eval()
    assert not [key for key in scaling.state_dict() if key.startswith("value_encoder")]
    seen = []
    scaling.bn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    scaling(genes, values, lengths)
    torch.testing.assert_close(seen[0], scaling.encoder(genes) * values[..., None])

    model = ScMamba2(dataclasses.replace(SMALL, value_encoder="category"), 40)
    shapes = {k: tuple(t.shape) for k, t in model.value_encoder.state_dict().items()}
    assert shapes == {"embedding.weight": (53, 32), "enc_norm.weight": (32,), "enc_norm.bias": (32,)}
    encoder, rows = model.value_encoder, model.value_encoder.embedding.weight
    got = encoder(torch.tensor([0.0, 50, -2, -1]))
    torch.testing.assert_close(got, encoder.enc_norm(rows[[0, 50, 51, 52]]))
    assert isinstance(encoder, BinEncoder) and torch.isfinite(model(genes, values, lengths)).all()
    for value in (51.0, -3.0):
        with pytest.raises(ValueError, match="0 to 50"):
            encoder(torch.tensor([value]))


def test_generator():
    torch.manual_seed(0)
    model = Generator(SMALL, 40, pad_id=37, explicit_zeros=True).eval()
    genes, values, _ = cells()
    flags = torch.zeros_like(genes)
    out, nonzero = model(genes, values, flags)
    assert out.shape == nonzero.shape == genes.shape
    flags[:, 3] = 1
    assert (model(genes, values, flags)[0] != out).any(), "the flag tells the perturbed gene"
    assert not model.pert_encoder.weight[0].any()

    x = model.encoder(genes) + model.value_encoder(values) + model.pert_encoder(flags)
    hidden = model.transformer_encoder(x)
    alpha, beta = (d(hidden)[0] for d in (model.decoder.coeff_decoder, model.decoder.bias_decoder))
    torch.testing.assert_close(model(genes, values, flags)[0], alpha * values + beta)
    model.decoder.scale_bias = True
    zeroed = values.masked_fill(torch.arange(15) % 2 == 1, 0)
    with torch.no_grad():
        alpha, beta = (d(hidden)[0] for d in (model.decoder.coeff_decoder, model.decoder.bias_decoder))
        mean = torch.stack([row[row != 0].mean() for row in zeroed])
        torch.testing.assert_close(model.decoder(hidden, zeroed)[0], alpha * zeroed + beta * mean[:, None])


def test_generator_padding_and_errors():
    torch.manual_seed(0)
    model = Generator(SMALL, 40, pad_id=37).eval()
    genes, values, lengths = cells()
    flags = torch.zeros_like(genes)
    together, nonzero = model(genes, values, flags, lengths)
    assert nonzero is None
    alone = model(genes[1:2, :7], values[1:2, :7], flags[1:2, :7])[0]
    torch.testing.assert_close(together[1, :7], alone[0], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="category"):
        Generator(dataclasses.replace(SMALL, value_encoder="category"), 40)


def test_pads_in_between_as_the_released_code_reads_them():
    """The reversal counts real tokens but turns the first ones, pads included: the last stay last."""
    torch.manual_seed(0)
    model = ScMamba2(dataclasses.replace(SMALL, oov="pad"), 40, pad_id=37).double().eval()
    genes, values, lengths = cells(b=1)
    genes[0, [3, 8]] = 37
    values = values.double()
    out = model(genes, values, lengths)
    x, counts = model.bn(model.encoder(genes) + model.value_encoder(values)), torch.tensor([13])
    for layer in model.mamba_encoder.layers:
        w = layer.mamba.weights()
        x = x + (mamba2(x, w) + reverse(mamba2(reverse(x, counts), w), counts)) / 2
    torch.testing.assert_close(out, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(model(genes, values, lengths, first_only=True), x[:, :1], rtol=0, atol=1e-12)
    values[0, 13:] += 5
    changed = model(genes, values, lengths)
    # Two pads hide the last two genes from <cls>.
    torch.testing.assert_close(changed[0, :13], out[0, :13], rtol=0, atol=1e-12)
    plain = ScMamba2(SMALL, 40, pad_id=37).double().eval()
    plain.load_state_dict(model.state_dict())
    assert (plain(genes, values, lengths) - out)[0, 0].abs().max() > 1e-3


@pytest.mark.parametrize("lengths", [None, torch.tensor([15, 7, 1])])
def test_the_cell_alone_and_the_layers_computed_twice(lengths):
    torch.manual_seed(0)
    backbone = Backbone(SMALL).double()
    x = torch.randn(3, 15, 32, dtype=torch.float64, requires_grad=True)
    gradients = []
    for first_only, recompute in [(False, False), (True, False), (False, True), (True, True)]:
        backbone.recompute = recompute
        out = backbone(x, lengths, first_only)[:, 0]
        gradients.append([out, *torch.autograd.grad(out.square().sum(), [x, *backbone.parameters()])])
    for other in gradients[1:]:
        for a, e in zip(other, gradients[0], strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=1e-10)


def test_a_readout_of_all_tokens_refuses_the_first_alone():
    model = ScMamba2(dataclasses.replace(SMALL, readout="average"), 40)
    with pytest.raises(ValueError, match="'average' needs all tokens"):
        model(*cells(), first_only=True)


def test_domain_batch_norm():
    norms = DomainBatchNorm(3, 8, affine=False)
    assert not list(norms.parameters()) and list(DomainBatchNorm(3, 8, True).parameters())
    x = torch.randn(4, 5, 8) + 3
    out = norms(x, torch.tensor([1, 1, 1, 1]))
    torch.testing.assert_close(out.mean((0, 1)), torch.zeros(8), rtol=0, atol=1e-5)
    moved = [bool(bn.running_mean.any()) for bn in norms.bns]
    assert moved == [False, True, False], "only this batch's running statistics change"
    with pytest.raises(ValueError, match="one batch"):
        norms(x, torch.tensor([0, 0, 1, 0]))


def test_model_with_domain_batch_norm_needs_batches():
    config = dataclasses.replace(SMALL, dsbn=True)
    with pytest.raises(ValueError, match="n_batches"):
        ScMamba2(config, 40)
    with pytest.raises(ValueError, match="batch"):
        ScMamba2(config, 40, n_batches=2)(*cells())


def test_discriminator_reverses_the_gradient():
    head = BatchDiscriminator(8, 2)
    a, b = (torch.ones(4, 8).requires_grad_() for _ in range(2))
    head(a).pow(2).sum().backward()
    super(BatchDiscriminator, head).forward(b).pow(2).sum().backward()
    assert a.grad.any() and torch.equal(a.grad, -b.grad)


def test_losses():
    prediction, target = torch.tensor([1.0, 5.0]), torch.tensor([3.0, 5.0])
    assert squared_error(prediction, target) == 2
    mixed = nonzero_nll(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([3.0, 0.0, 7.0]))
    expected = (2 * torch.tensor(2.0).log() - torch.sigmoid(torch.tensor(1.0)).log()) / 3
    torch.testing.assert_close(mixed, expected)  # the denominator counts hidden values
    sure = nonzero_nll(torch.tensor([9.0, -9.0]), torch.tensor([3.0, 0.0]))
    wrong = nonzero_nll(torch.tensor([-9.0, 9.0]), torch.tensor([3.0, 0.0]))
    assert sure < 1e-3 and wrong > 8
    torch.testing.assert_close(nonzero_nll(torch.zeros(1), torch.ones(1)), torch.tensor(2.0).log())
    assert squared_error(torch.zeros(0), torch.zeros(0)) == 0
    assert nonzero_nll(torch.zeros(0), torch.zeros(0)) == 0


def test_elastic_similarity_by_hand():
    same, apart = torch.tensor([[1.0, 0], [3.0, 0]]), torch.tensor([[1.0, 0], [-2.0, 0]])
    # Two of four pairs have cosine 1 or 0; a cell with itself always counts as 0.
    assert elastic_similarity(same, 0.8).item() == pytest.approx((2 * 0.96 + 2 * 0.36) / 4)
    assert elastic_similarity(apart, 0.8).item() == pytest.approx(0.36)
    slanted = torch.tensor([[1.0, 0], [3.0, 4.0]]).requires_grad_()
    loss = elastic_similarity(slanted, 0.3)
    assert loss.item() == pytest.approx((2 * (1 - 0.3**2) + 2 * 0.91) / 4)
    loss.backward()
    with torch.no_grad():
        closer = slanted - 0.1 * slanted.grad
    assert elastic_similarity(closer, 0.3) < loss
    assert nn.functional.cosine_similarity(closer[0], closer[1], dim=0) > 0.6
