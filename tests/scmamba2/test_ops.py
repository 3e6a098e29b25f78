"""The bidirectional core: the sequential reference decides, the chunked backend must agree."""

from __future__ import annotations

import pytest
import torch

from scmamba2.ops import bissd, chunked
from scmamba2.ops.reference import reverse


def inputs(b, length, heads=2, headdim=8, n=6, dtype=torch.float64, step=0.0):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    d_inner = heads * headdim
    return [
        normal(b, length, 2 * d_inner + 2 * n + heads),
        0.5 * normal(d_inner + 2 * n, 1, 4),
        0.1 * normal(d_inner + 2 * n),
        normal(heads) - 3 + step,
        torch.rand(heads, generator=generator, dtype=dtype) * 2.5,
        1 + 0.1 * normal(heads),
        1 + 0.1 * normal(d_inner),
    ]


def run(backend, tensors, lengths, chunk_size=64):
    """Return the output and all gradients for a loss that weighs every output differently."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = bissd(*leaves, lengths, chunk_size=chunk_size, backend=backend)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    (out * weight).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def assert_same(got, expected, tolerance):
    for a, e in zip(got, expected, strict=True):
        assert (a - e).abs().max() <= tolerance * (1 + e.abs().max())


@pytest.fixture(params=["kept", "computed again"])
def memory(request, monkeypatch):
    """Both ways to have the intermediates in the backward pass."""
    if request.param == "computed again":
        monkeypatch.setattr(chunked, "KEEP_ELEMENTS", 0)


@pytest.fixture(params=["one slice", "a cell each"])
def slices(request, monkeypatch):
    if request.param == "a cell each":
        monkeypatch.setattr(chunked, "CACHE_ELEMENTS", 1)


@pytest.mark.parametrize(
    ("length", "lengths", "heads", "chunk_size"),
    [
        (1, None, 1, 64),
        (2, None, 2, 64),
        (33, None, 3, 16),
        (64, None, 2, 64),
        (70, [70, 0, 1, 2, 3, 69], 3, 16),
        (70, [5, 0, 64, 65], 1, 64),
        (9, [0, 0, 4], 2, 4),
    ],
)
def test_chunked_equals_sequential_in_float64(length, lengths, heads, chunk_size, memory, slices):
    tensors = inputs(3 if lengths is None else len(lengths), length, heads)
    lengths = None if lengths is None else torch.tensor(lengths)
    expected = run("reference", tensors, lengths)
    assert_same(run("chunked", tensors, lengths, chunk_size), expected, 1e-12)


@pytest.mark.parametrize("length", [1, 3, 64, 257])
def test_chunked_equals_sequential_in_float32(length):
    tensors = inputs(2, length, heads=2, headdim=64, n=64, dtype=torch.float32)
    expected = run("reference", tensors, None)
    assert_same(run("auto", tensors, None), expected, 1e-4)


def test_equals_the_quadratic_form():
    """One chunk is the masked-attention form of the same map: a third, independent order."""
    tensors = inputs(2, 50)
    assert_same(run("chunked", tensors, None, 50), run("chunked", tensors, None, 7), 1e-12)


def test_gradient_agrees_with_finite_differences():
    leaves = [t.requires_grad_() for t in inputs(2, 5, heads=1, headdim=4, n=2)]
    lengths = torch.tensor([5, 3])
    assert torch.autograd.gradcheck(lambda *a: bissd(*a, lengths, chunk_size=2), leaves)


def test_large_steps_do_not_overflow():
    tensors = inputs(2, 130, dtype=torch.float32, step=8)
    got, expected = run("chunked", tensors, None), run("reference", tensors, None)
    assert_same(got[:4], expected[:4], 1e-4)
    assert_same(got[4:], expected[4:], 1e-2)  # of decays: a difference that is almost 0 here


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("filling", [1e6, float("nan")])
def test_pads_have_no_influence(backend, filling):
    tensors = inputs(3, 20)
    lengths = torch.tensor([20, 7, 0])
    expected = run(backend, tensors, lengths, 8)
    pad = torch.arange(20) >= lengths[:, None]
    tensors[0][pad] = filling
    got = run(backend, tensors, lengths, 8)
    for a, e in zip(got, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)
    assert (got[0][pad] == 0).all() and (got[1][pad] == 0).all()


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_reversed_input_gives_reversed_output(backend):
    tensors = inputs(3, 20)
    lengths = torch.tensor([20, 7, 1])
    out = bissd(*tensors, lengths, backend=backend)
    tensors[0] = reverse(tensors[0], lengths)
    mirrored = bissd(*tensors, lengths, backend=backend)
    torch.testing.assert_close(reverse(mirrored, lengths), out, rtol=0, atol=1e-12)


def test_reverse():
    x = torch.arange(12).view(3, 4)
    lengths = torch.tensor([3, 1, 0])
    assert reverse(x, lengths).tolist() == [[2, 1, 0, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert torch.equal(reverse(reverse(x, lengths), lengths), x)
    assert torch.equal(reverse(x, torch.full((3,), 4)), x.flip(1))


def test_half_precision_is_computed_in_float32():
    tensors = [t.bfloat16() for t in inputs(2, 30)]
    out = bissd(*tensors)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, bissd(*(t.float() for t in tensors)).bfloat16())


def test_empty_inputs():
    assert bissd(*inputs(0, 5)).shape == (0, 5, 16)
    assert bissd(*inputs(2, 0)).shape == (2, 0, 16)


def test_errors():
    tensors = inputs(2, 5)
    with pytest.raises(ValueError, match="choose from auto, chunked, reference"):
        bissd(*tensors, backend="cuda")
    with pytest.raises(ValueError, match="lengths"):
        bissd(*tensors, torch.tensor([5, 6]))
    with pytest.raises(ValueError, match="does not fit"):
        bissd(tensors[0][..., 1:], *tensors[1:])
