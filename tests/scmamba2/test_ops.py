"""The bidirectional mixer: the sequential reference decides, the other backends must agree."""

from __future__ import annotations

import importlib
import math
import threading

import pytest
import torch

from scmamba2.ops import Weights, bimamba2, bimamba2_first, choose
from scmamba2.ops.reference import mamba2, reverse

blocked = importlib.import_module("scmamba2.ops.blocked")
mamba_ssm = importlib.import_module("scmamba2.ops.mamba_ssm")
NAMES = ["out", "x", *Weights._fields]


def inputs(b, length, heads=2, headdim=8, n=6, d_model=10, dtype=torch.float64, largest_step=0.1, width=4):
    """Draw x and weights like those of a new mixer, with steps up to ``largest_step``."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    d_inner = heads * headdim
    step = torch.exp(uniform(heads) * math.log(largest_step / 1e-3) + math.log(1e-3))
    weights = Weights(
        in_proj=normal(2 * d_inner + 2 * n + heads, d_model) / d_model**0.5,
        conv_weight=0.5 * normal(d_inner + 2 * n, 1, width),
        conv_bias=0.1 * normal(d_inner + 2 * n),
        dt_bias=step + torch.log(-torch.expm1(-step)),
        A_log=(1 + 15 * uniform(heads)).log(),
        D=1 + 0.1 * normal(heads),
        norm_weight=1 + 0.1 * normal(d_inner),
        out_proj=normal(d_model, d_inner) / d_inner**0.5,
    )
    return normal(b, length, d_model).to(dtype), Weights(*(t.to(dtype) for t in weights))


def run(operation, x, weights):
    """Return the output and all gradients for a loss that weighs every output differently."""
    leaves = [t.clone().requires_grad_() for t in (x, *weights)]
    out = operation(leaves[0], Weights(*leaves[1:]))
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (out * weight.to(out.dtype)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def by(backend, lengths=None, chunk_size=64, **options):
    return lambda x, w: bimamba2(x, w, lengths, chunk_size=chunk_size, backend=backend, **options)


def assert_same(got, expected, tolerance):
    """Compare relative to the largest value of each tensor, or to 0.01 where a gradient is about 0."""
    for name, a, e in zip(NAMES, got, expected, strict=True):
        assert (a.double() - e).abs().max() <= tolerance * max(0.01, e.abs().max()), name


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request, monkeypatch):
    """All cells in one block; or a cell each, a chunk each, the projection computed again."""
    if request.param == "many blocks":
        monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", 1)
        monkeypatch.setattr(blocked, "KEEP_ELEMENTS", 0)
        monkeypatch.setattr(blocked, "PIECE_TOKENS", 7)


@pytest.fixture(params=["factors", "pairs"])
def decays(request, monkeypatch):
    """Decays as products of two factors, and decays formed for each pair of tokens."""
    if request.param == "pairs":
        monkeypatch.setattr(blocked, "HALF_RANGE", -1)


CASES = [
    (1, None, 1, 64),
    (2, None, 2, 64),
    (33, None, 3, 16),
    (64, None, 2, 64),
    (70, [70, 0, 1, 2, 3, 69], 3, 16),
    (70, [5, 0, 64, 65], 1, 64),
    (9, [0, 0, 4], 2, 4),
    (200, None, 2, 16),
]


@pytest.mark.parametrize("largest_step", [0.1, 2.0])
@pytest.mark.parametrize(("length", "lengths", "heads", "chunk_size"), CASES)
def test_blocked_equals_sequential_in_float64(
    length, lengths, heads, chunk_size, largest_step, blocks, decays
):
    b = 3 if lengths is None else len(lengths)
    tensors = inputs(b, length, heads, largest_step=largest_step)
    lengths = None if lengths is None else torch.tensor(lengths)
    expected = run(by("reference", lengths), *tensors)
    assert_same(run(by("blocked", lengths, chunk_size), *tensors), expected, 1e-12)


@pytest.mark.parametrize("length", [1, 3, 64, 257, 1201])
@pytest.mark.parametrize("largest_step", [0.1, 2.0])
def test_blocked_in_float32(length, largest_step, decays):
    sizes = {"heads": 3, "headdim": 64, "n": 64, "d_model": 96, "largest_step": largest_step}
    expected = run(by("reference"), *inputs(2, length, **sizes))
    assert_same(run(by("blocked"), *inputs(2, length, dtype=torch.float32, **sizes)), expected, 1e-5)


@pytest.mark.parametrize(("largest_step", "tolerance"), [(0.1, 1e-2), (2.0, 3e-2)])
def test_blocked_in_bfloat16(largest_step, tolerance, decays):
    """Values keep 1e-2 and so do gradients at steps as they are drawn; those of the few parameters per
    head, sums that mostly cancel, keep 5e-2. The released structure under autocast does no better."""
    sizes = {"heads": 3, "headdim": 64, "n": 64, "d_model": 96, "largest_step": largest_step}
    expected = run(by("reference"), *inputs(2, 257, **sizes))
    x, weights = inputs(2, 257, dtype=torch.float32, **sizes)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(by("blocked"), x, weights)
        first = bimamba2_first(x, weights)
    assert got[0].dtype == first.dtype == torch.float32
    assert (first - expected[0][:, 0]).norm() <= 1e-2 * expected[0][:, 0].norm()
    allowed = {"out": 1e-2, "dt_bias": 5e-2, "A_log": 5e-2, "D": 5e-2}
    for name, a, e in zip(NAMES, got, expected, strict=True):
        assert (a - e).norm() <= allowed.get(name, tolerance) * e.norm(), name


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads, monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", 1)
    tensors = inputs(5, 40, dtype=torch.float32)
    lengths = torch.tensor([40, 3, 0, 17, 40])
    expected = run(by("blocked", lengths), *tensors)
    torch.set_num_threads(threads)
    try:
        got = run(by("blocked", lengths), *tensors)
        with torch.inference_mode():
            assert torch.equal(bimamba2(*tensors, lengths), expected[0])
        others = []
        other = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert (torch.get_num_threads(), others) == (threads, [threads]), "others keep their threads"
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, e) for a, e in zip(got, expected, strict=True))


def test_equals_the_quadratic_form():
    """One chunk is the masked-attention form of the same map: a third, independent order."""
    tensors = inputs(2, 50)
    expected = run(by("blocked", chunk_size=7), *tensors)
    assert_same(run(by("blocked", chunk_size=50), *tensors), expected, 1e-12)


def test_gradient_agrees_with_finite_differences():
    x, weights = inputs(2, 5, heads=1, headdim=4, n=2, d_model=3)
    leaves = [t.requires_grad_() for t in (x, *weights)]
    lengths = torch.tensor([5, 3])
    assert torch.autograd.gradcheck(lambda x, *w: bimamba2(x, w, lengths, chunk_size=2), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_too_large_for_factors(dtype):
    tensors = inputs(2, 130, largest_step=50.0, dtype=dtype)
    part = blocked._Slice(tensors[0], torch.tensor([130, 130]), tensors[1], blocked.Settings(64, 1e-5, dtype))
    assert not part.factorised
    expected = run(by("reference"), *inputs(2, 130, largest_step=50.0))
    assert_same(run(by("blocked"), *tensors), expected, 1e-4 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("backend", ["reference", "blocked"])
@pytest.mark.parametrize("filling", [1e6, float("nan")])
def test_pads_have_no_influence(backend, filling):
    x, weights = inputs(3, 20)
    lengths = torch.tensor([20, 7, 0])
    expected = run(by(backend, lengths, 8), x, weights)
    pad = torch.arange(20) >= lengths[:, None]
    x[pad] = filling
    got = run(by(backend, lengths, 8), x, weights)
    for a, e in zip(got, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)
    assert (got[0][pad] == 0).all() and (got[1][pad] == 0).all()
    first = run(lambda x, w: bimamba2_first(x, w, lengths), x, weights)
    torch.testing.assert_close(first[0], expected[0][:, 0], rtol=0, atol=1e-12)
    assert all(torch.isfinite(t).all() for t in first)


def test_float16_overflows_no_factor():
    """Factors reach exp(60), float16 only 65,504: there decays are formed for each pair."""
    x, weights = inputs(2, 300, heads=2, headdim=64, n=16, d_model=32, dtype=torch.float32)
    expected = bimamba2(x, weights)
    with torch.autocast("cpu", torch.float16):
        got = bimamba2(x, weights)
    assert (got - expected).norm() <= 1e-2 * expected.norm()


def test_small_gradients_keep_their_digits():
    """Where the factors are largest that are allowed, a small gradient must not become denormal."""
    x, weights = inputs(1, 64, heads=1, headdim=64, n=16, d_model=32)
    step, rate = 0.99 * 2 * blocked.HALF_RANGE / 64 / 16, 16.0
    flat = weights.in_proj.clone()
    flat[-1] = 0  # every token has the same step
    weights = weights._replace(
        in_proj=flat,
        A_log=torch.full((1,), math.log(rate), dtype=torch.float64),
        dt_bias=torch.full((1,), math.log(math.expm1(step)), dtype=torch.float64),
    )
    expected = run(by("reference"), x, weights)
    leaves = [t.float().requires_grad_() for t in (x, *weights)]
    out = bimamba2(leaves[0], leaves[1:])
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (out * weight.float() * 1e-12).sum().backward()
    for name, leaf, e in zip(NAMES[1:], leaves, expected[1:], strict=True):
        if name not in ("A_log", "dt_bias"):
            assert (leaf.grad.double() * 1e12 - e).norm() <= 1e-4 * e.norm(), name


@pytest.mark.parametrize("backend", ["reference", "blocked"])
def test_reversed_input_gives_reversed_output(backend):
    x, weights = inputs(3, 20)
    lengths = torch.tensor([20, 7, 1])
    out = bimamba2(x, weights, lengths, backend=backend)
    mirrored = bimamba2(reverse(x, lengths), weights, lengths, backend=backend)
    torch.testing.assert_close(reverse(mirrored, lengths), out, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [4096, 9])
@pytest.mark.parametrize("lengths", [None, [40, 0, 1, 2, 3, 39]])
def test_first_token_alone(block, lengths, monkeypatch):
    monkeypatch.setattr(importlib.import_module("scmamba2.ops.first"), "BLOCK_TOKENS", block)
    tensors = inputs(6, 40, heads=3)
    lengths = None if lengths is None else torch.tensor(lengths)
    expected = run(lambda x, w: bimamba2(x, w, lengths)[:, 0], *tensors)
    assert_same(run(lambda x, w: bimamba2_first(x, w, lengths), *tensors), expected, 1e-12)


@pytest.mark.parametrize("backend", ["reference", "blocked"])
def test_forward_only(backend, blocks):
    tensors = inputs(2, 40)
    expected = run(lambda x, w: mamba2(x, w), *tensors)
    assert_same(run(by(backend, chunk_size=16, forward_only=True), *tensors), expected, 1e-12)


def test_reverse():
    x = torch.arange(12).view(3, 4)
    lengths = torch.tensor([3, 1, 0])
    assert reverse(x, lengths).tolist() == [[2, 1, 0, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert torch.equal(reverse(reverse(x, lengths), lengths), x)
    assert torch.equal(reverse(x, torch.full((3,), 4)), x.flip(1))


def test_half_precision_is_computed_in_float32():
    x, weights = inputs(2, 30)
    x, weights = x.bfloat16(), [t.bfloat16() for t in weights]
    out = bimamba2(x, weights)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, bimamba2(x.float(), [t.float() for t in weights]).bfloat16())


def test_the_width_of_the_convolution_is_free():
    for width in (1, 2, 5):
        tensors = inputs(2, 9, width=width)
        assert_same(run(by("blocked"), *tensors), run(by("reference"), *tensors), 1e-12)


def test_empty_inputs():
    for b, length in ((0, 5), (2, 0)):
        x, weights = inputs(b, length)
        assert bimamba2(x, weights).shape == (b, length, 10)
        assert bimamba2_first(x, weights).shape == (b, 10)


def scan_as_documented(x, dt, A, B, C, chunk_size, D):
    """What mamba-ssm documents of ``mamba_chunk_scan_combined``: x (b, l, h, p), dt (b, l, h), A (h),
    B and C (b, l, groups, n), D (h); out (b, l, h, p)."""
    state, out = torch.zeros(*x[:, 0].shape, B.shape[-1], dtype=x.dtype), []
    for t in range(x.shape[1]):
        added = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]
        state = torch.exp(dt[:, t] * A)[..., None, None] * state + added
        out.append((state * C[:, t, :, None, :]).sum(-1) + D[:, None] * x[:, t])
    return torch.stack(out, dim=1)


@pytest.mark.parametrize("forward_only", [False, True])
@pytest.mark.parametrize("lengths", [None, [12, 0, 1, 7]])
def test_around_the_kernels_of_mamba_ssm(lengths, forward_only, monkeypatch):
    """The kernels themselves need a GPU or Triton's interpreter; everything around them does not."""
    monkeypatch.setattr(mamba_ssm, "kernel", lambda: scan_as_documented)
    tensors = inputs(4, 12, heads=3)
    lengths = None if lengths is None else torch.tensor(lengths)
    expected = run(by("reference", lengths, forward_only=forward_only), *tensors)
    got = run(by("mamba_ssm", lengths, forward_only=forward_only), *tensors)
    assert_same(got, expected, 1e-6)  # step sizes and norms are float32 there


def test_choice_of_backend(monkeypatch, caplog):
    choose.cache_clear()
    assert choose("cpu") == ("blocked", "the device is cpu")
    monkeypatch.setattr(mamba_ssm, "missing", lambda: "ModuleNotFoundError: No module named 'triton'")
    assert choose("cuda")[0] == "blocked" and "No module named 'triton'" in choose("cuda")[1]
    assert [r.levelname for r in caplog.records].count("WARNING") == 1
    choose.cache_clear()
    monkeypatch.setattr(mamba_ssm, "missing", lambda: None)
    assert choose("cuda")[0] == "mamba_ssm"
    choose.cache_clear()
    monkeypatch.setenv("SCMAMBA2_BACKEND", "reference")
    assert choose("cpu")[0] == "reference"
    choose.cache_clear()
    monkeypatch.setenv("SCMAMBA2_BACKEND", "triton")
    with pytest.raises(ValueError, match="SCMAMBA2_BACKEND is 'triton'"):
        choose("cpu")
    choose.cache_clear()


def test_errors():
    x, weights = inputs(2, 5)
    with pytest.raises(ValueError, match="choose from auto, blocked, mamba_ssm, reference"):
        bimamba2(x, weights, backend="cuda")
    with pytest.raises(ValueError, match="lengths"):
        bimamba2(x, weights, torch.tensor([5, 6]))
    with pytest.raises(ValueError, match="do not fit"):
        bimamba2(x[..., 1:], weights)
    with pytest.raises(ValueError, match=r"A_log \(1,\).* do not fit"):
        bimamba2(x, weights._replace(A_log=weights.A_log[:1]))
    with pytest.raises(ValueError, match="chunk_size"):
        bimamba2(x, weights, chunk_size=0)
    with pytest.raises(ValueError, match="whole number"):
        bimamba2(x, weights, torch.tensor([5.0, 5.0]))


@pytest.mark.parametrize(
    ("mode", "wanted"), [(torch.no_grad, False), (torch.inference_mode, False), (torch.enable_grad, True)]
)
def test_nothing_is_kept_without_need(mode, wanted, monkeypatch):
    """Trained weights require gradients, also where nobody asks for one."""
    x, weights = inputs(2, 9)
    weights = [w.requires_grad_() for w in weights]
    seen, real = [], blocked._Slice.forward
    monkeypatch.setattr(
        blocked._Slice, "forward", lambda self, out, train: seen.append(train) or real(self, out, train)
    )
    with mode():
        out = bimamba2(x, weights)
    assert seen == [wanted] and out.requires_grad is wanted
