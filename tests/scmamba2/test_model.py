"""The network: names, sizes, invariances."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from scmamba2.config import PRESETS, Config
from scmamba2.model.backbone import Layer
from scmamba2.model.embeddings import DomainBatchNorm
from scmamba2.model.heads import BatchDiscriminator
from scmamba2.model.losses import nonzero_nll, squared_error
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


def linear(prefix, d_out, d_in, bias=True):
    return {f"{prefix}.weight": (d_out, d_in), **({f"{prefix}.bias": (d_out,)} if bias else {})}


def norm(prefix, d):
    return {f"{prefix}.weight": (d,), f"{prefix}.bias": (d,)}


def expected_keys(d, depth, tokens, d_in, batches, classes, zeros, mvc, adversarial, dsbn):
    keys = {
        "encoder.embedding.weight": (tokens, d),
        **norm("encoder.enc_norm", d),
        **linear("value_encoder.linear1", d, 1),
        **linear("value_encoder.linear2", d, d),
        **norm("value_encoder.norm", d),
        **linear("cls_decoder.out_layer", classes, d),
    }
    for i in range(depth):
        prefix = f"mamba_encoder.layers.{i}.mamba"
        keys |= {
            f"{prefix}.in_proj.weight": (4 * d + 128 + d // 32, d),
            f"{prefix}.conv1d.weight": (2 * d + 128, 1, 4),
            f"{prefix}.conv1d.bias": (2 * d + 128,),
            f"{prefix}.norm.weight": (2 * d,),
            f"{prefix}.out_proj.weight": (d, 2 * d),
        }
        keys |= {f"{prefix}.{name}": (2 * d // 64,) for name in ("dt_bias", "A_log", "D")}
    for prefix in ["decoder.fc", *(["decoder.zero_logit"] if zeros else [])]:
        keys |= linear(f"{prefix}.0", d, d_in) | linear(f"{prefix}.2", d, d)
        keys |= linear(f"{prefix}.4", 1, d)
    heads = ["cls_decoder", *(["grad_reverse_discriminator"] if adversarial else [])]
    for prefix in heads:
        for i in (0, 3):
            keys |= linear(f"{prefix}._decoder.{i}", d, d) | norm(f"{prefix}._decoder.{i + 2}", d)
    if adversarial:
        keys |= linear("grad_reverse_discriminator.out_layer", batches, d)
    if mvc:
        keys |= linear("mvc_decoder.gene2query", d_in, d_in)
        keys |= linear("mvc_decoder.W", d_in, d_in, bias=False)
        if zeros:
            keys |= linear("mvc_decoder.W_zero_logit", d_in, d_in)
    if batches:
        keys |= {
            "batch_encoder.embedding.weight": (batches, d),
            **norm("batch_encoder.enc_norm", d),
        }
    for prefix in [f"dsbn.bns.{k}" for k in range(batches)] if dsbn else ["bn"]:
        keys |= {f"{prefix}.running_mean": (d,), f"{prefix}.running_var": (d,)}
        keys |= {f"{prefix}.num_batches_tracked": ()} | ({} if dsbn else norm(prefix, d))
    return keys


def test_state_dict_of_the_plain_model():
    model = ScMamba2(Config(d_model=512, n_layers=2), 100, pad_id=97)
    shapes = {key: tuple(t.shape) for key, t in model.state_dict().items()}
    assert shapes == expected_keys(512, 2, 100, 512, 0, 1, False, False, False, False)


def test_state_dict_with_all_heads_and_round_trip():
    config = Config(d_model=512, n_layers=2, dsbn=True)
    heads = {"n_batches": 3, "n_classes": 7, "explicit_zeros": True, "mvc": True}
    model = ScMamba2(config, 100, pad_id=97, adversarial=True, **heads)
    shapes = {key: tuple(t.shape) for key, t in model.state_dict().items()}
    assert shapes == expected_keys(512, 2, 100, 1024, 3, 7, True, True, True, True)
    other = ScMamba2(config, 100, pad_id=97, adversarial=True, **heads)
    other.load_state_dict(model.state_dict())
    for key, tensor in other.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key])


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
    sure = nonzero_nll(torch.tensor([9.0, -9.0]), torch.tensor([3.0, 0.0]))
    wrong = nonzero_nll(torch.tensor([-9.0, 9.0]), torch.tensor([3.0, 0.0]))
    assert sure < 1e-3 and wrong > 8
    torch.testing.assert_close(nonzero_nll(torch.zeros(1), torch.ones(1)), torch.tensor(2.0).log())
    assert squared_error(torch.zeros(0), torch.zeros(0)) == 0
    assert nonzero_nll(torch.zeros(0), torch.zeros(0)) == 0
