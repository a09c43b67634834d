"""attention_forward, attention_backward and merge on DLPack arrays, against plain numpy."""

import subprocess
import sys

import numpy as np
import pytest

import slidetile
from slidetile import attention_backward, attention_forward, full_plan, merge, sliding_tile_plan

PLAN = sliding_tile_plan("4x6x8", ["1x1x1", "2x2x1"], "2x4x4", after=5)
TOKENS = PLAN.query_tokens


def arrays(seed=0, count=3, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((2, 2, TOKENS, 16)).astype(dtype) for _ in range(count)]


def expected(q, k, v, plan, scale=None):
    scores = np.einsum("bhqd,bhkd->bhqk", q, k).astype(np.float64) * (q.shape[-1] ** -0.5 if scale is None else scale)
    for head in range(q.shape[1]):
        scores[:, head, ~plan.mask(head if plan.heads > 1 else 0)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    lse = np.log(weights.sum(-1)) + scores.max(-1)
    return np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdims=True), v), lse


def test_forward():
    q, k, v = arrays()
    out, lse = attention_forward(q, k, v, PLAN, scale=0.3)
    want, want_lse = expected(q, k, v, PLAN, 0.3)
    np.testing.assert_allclose(out, want, atol=2e-6)
    np.testing.assert_allclose(lse, want_lse, atol=2e-6)


def test_strides_and_layouts_are_the_callers():
    q, k, v = arrays()
    want, want_lse = expected(q, k, v, PLAN)
    swapped = [np.ascontiguousarray(x.swapaxes(1, 2)) for x in (q, k, v)]
    out, lse = attention_forward(*swapped, PLAN, layout="bshd")
    assert out.shape == swapped[0].shape and lse.shape == (2, 2, TOKENS)
    np.testing.assert_allclose(out.swapaxes(1, 2), want, atol=2e-6)
    wide = np.full((2, 2, TOKENS, 40), np.nan, np.float32)  # a slice of a fused projection
    wide[..., 8:24] = q
    out, lse = attention_forward(wide[..., 8:24], k, v, PLAN)
    np.testing.assert_allclose(out, want, atol=2e-6)
    np.testing.assert_allclose(lse, want_lse, atol=2e-6)
    into = np.full((2, TOKENS, 2, 16), np.nan, np.float32)
    result, _ = attention_forward(q, k, v, PLAN, out=into.swapaxes(1, 2))
    np.testing.assert_allclose(into.swapaxes(1, 2), want, atol=2e-6)


def test_half_precision():
    q, k, v = arrays(dtype=np.float16)
    out, _ = attention_forward(q, k, v, PLAN)
    assert out.dtype == np.float16
    np.testing.assert_allclose(out, expected(*(x.astype(np.float32) for x in (q, k, v)), PLAN)[0], atol=2e-3)


def test_torch_arrays_and_bfloat16():
    torch = pytest.importorskip("torch")
    q, k, v = (torch.from_numpy(x).bfloat16() for x in arrays())
    out, lse = attention_forward(q, k, v, PLAN)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    want, _ = expected(*(x.float().numpy() for x in (q, k, v)), PLAN)
    np.testing.assert_allclose(out.float().numpy(), want, atol=2e-2)


def test_bfloat16_in_numpy():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    q, k, v = (x.astype(ml_dtypes.bfloat16) for x in arrays())
    out, _ = attention_forward(q, k, v, PLAN)
    want, _ = expected(*(x.astype(np.float32) for x in (q, k, v)), PLAN)
    np.testing.assert_allclose(out.astype(np.float32), want, atol=2e-2)


def test_jax_arrays():
    jax = pytest.importorskip("jax")
    host = jax.devices("cpu")[0]
    q, k, v, dout = arrays(count=4)
    on_jax = [jax.device_put(x, host) for x in (q, k, v, dout)]
    out, lse = attention_forward(*on_jax[:3], PLAN)
    grads = attention_backward(on_jax[3], *on_jax[:3], out, lse, PLAN)
    want = attention_forward(q, k, v, PLAN)
    for got, expected in zip((out, lse, *grads), (*want, *attention_backward(dout, q, k, v, *want, PLAN)), strict=True):
        assert isinstance(got, jax.Array)
        np.testing.assert_array_equal(got, expected)
    into, into_lse = np.empty_like(q), np.empty((2, 2, TOKENS), np.float32)
    assert attention_forward(*on_jax[:3], PLAN, out=into, lse=into_lse)[0] is into
    np.testing.assert_array_equal(into, want[0])
    half = [x.astype(jax.numpy.bfloat16) for x in on_jax[:3]]
    out, _ = attention_forward(*half, PLAN)
    assert out.dtype == jax.numpy.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), want[0], atol=3e-2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda jax, x: attention_forward(x, x, x, PLAN, out=x), "out: an array of jax is read-only"),
        (lambda jax, x: merge(x, x[..., 0], x, x[..., 0]), "read-only"),
        (lambda jax, x: jax.jit(lambda x: attention_forward(x, x, x, PLAN))(x), "pure_callback"),
        (lambda jax, x: jax.grad(lambda x: attention_forward(x, x, x, PLAN)[0].sum())(x), "pure_callback"),
        (lambda jax, x: attention_forward(x.astype(int), x, x, PLAN), "int32 arrays of jax"),
    ],
)
def test_bad_input_of_jax(call, message):
    jax = pytest.importorskip("jax")
    with pytest.raises((ValueError, BufferError), match=message):
        call(jax, jax.device_put(arrays()[0], jax.devices("cpu")[0]))


def test_jax_on_a_gpu_goes_through_torch():
    jax, torch = pytest.importorskip("jax"), pytest.importorskip("torch")
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError:
        pytest.skip("no GPU that jax knows")
    x = jax.device_put(arrays()[0], device)
    with pytest.raises(ValueError, match="torch.from_dlpack"):
        attention_forward(x, x, x, PLAN)
    tensor = torch.from_dlpack(x)
    out, _ = attention_forward(tensor, tensor, tensor, PLAN)
    np.testing.assert_allclose(np.asarray(jax.dlpack.from_dlpack(out)), attention_forward(*3 * [np.asarray(x)], PLAN)[0], atol=2e-3)


def test_key_lengths():
    q, k, v = arrays()
    lengths = [TOKENS - 5, TOKENS - 1]
    out, lse = attention_forward(q, k, v, PLAN, key_lengths=lengths)
    for item, length in enumerate(lengths):
        masked = v.copy()
        masked[:, :, length:] = np.nan  # not read
        again, _ = attention_forward(q, k, masked, PLAN, key_lengths=lengths)
        assert np.array_equal(again[item], out[item])
        assert (out[item, :, length:] == 0).all() and np.isneginf(lse[item, :, length:]).all()


def test_backward_by_finite_differences():
    q, k, v, dout = arrays(count=4)
    out, lse = attention_forward(q, k, v, PLAN)
    grads = attention_backward(dout, q, k, v, out, lse, PLAN)
    rng = np.random.default_rng(1)
    for index, grad in enumerate(grads):
        direction = rng.standard_normal(q.shape).astype(np.float32)
        moved = [[x + (step * direction if i == index else 0) for i, x in enumerate((q, k, v))] for step in (1e-3, -1e-3)]
        high, low = ((expected(*triple, PLAN)[0] * dout).sum() for triple in moved)
        assert (grad * direction).sum() == pytest.approx((high - low) / 2e-3, rel=2e-3, abs=2e-3)


def test_merge():
    q, k, v = arrays()
    half = TOKENS // 2
    cross = [sliding_tile_plan((1, 1, TOKENS), "1x1x1", (1, 1, TOKENS))]
    want, want_lse = expected(q, k, v, cross[0])
    whole = full_plan((1, 1, TOKENS), (1, 1, 16))
    out, lse = attention_forward(q, k, v, whole)
    np.testing.assert_allclose(out, want, atol=2e-6)
    # Two disjoint sets of keys, by plans that see one block each.
    parts = []
    for window in (slice(0, half), slice(half, TOKENS)):
        scores = np.einsum("bhqd,bhkd->bhqk", q, k[:, :, window]) / 4
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        parts.append((np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdims=True), v[:, :, window]).astype(np.float32),
                      (np.log(weights.sum(-1)) + scores.max(-1)).astype(np.float32)))  # fmt: skip
    merge(*parts[0], *parts[1])
    np.testing.assert_allclose(parts[0][0], want, atol=2e-6)
    np.testing.assert_allclose(parts[0][1], want_lse, atol=2e-6)


def test_merge_of_tensors():
    torch = pytest.importorskip("torch")
    from slidetile.torch import merge as merged

    q, k, v = arrays()
    out, lse = attention_forward(q, k, v, PLAN)
    other, other_lse = attention_forward(q, k[:, :, ::-1].copy(), v, PLAN)
    lse[0, 0, :3] = -np.inf  # no key in one of them, then in both
    other_lse[0, 0, :2] = -np.inf
    out[0, 0, :3], other[0, 0, :2] = 0, 0
    for device in ["cpu"] + (["cuda"] if torch.cuda.is_available() else []):
        tensors = [torch.from_numpy(x.copy()).to(device) for x in (out, lse, other, other_lse)]
        result = merged(*tensors)
        merge(*tensors)
        for got, want in zip(tensors[:2], result, strict=True):
            torch.testing.assert_close(got, want)
        swapped = merged(tensors[0].transpose(1, 2), tensors[1], tensors[2].transpose(1, 2), tensors[3], layout="bshd")
        again = merged(*tensors)
        torch.testing.assert_close(swapped[0].transpose(1, 2), again[0])
        assert (result[0][0, 0, :2] == 0).all() and torch.isneginf(result[1][0, 0, :2]).all()
        assert torch.equal(result[0][0, 0, 2], tensors[2][0, 0, 2])
    with pytest.raises(ValueError, match="lse is"):
        merged(tensors[0], tensors[1][:1], tensors[2], tensors[3])


def test_cuda_arrays():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    q, k, v, dout = arrays(count=4)
    want, want_lse = attention_forward(q, k, v, PLAN)
    grads = attention_backward(dout, q, k, v, want, want_lse, PLAN)
    makers = [lambda x: torch.from_numpy(x).cuda()]
    try:
        import cupy

        makers.append(cupy.asarray)
    except ImportError:
        pass
    for make in makers:
        on_device = [make(x) for x in (q, k, v, dout)]
        out, lse = attention_forward(*on_device[:3], PLAN)
        assert type(out) is type(on_device[0])
        results = (out, lse, *attention_backward(on_device[3], *on_device[:3], out, lse, PLAN))
        for got, expected in zip(results, (want, want_lse, *grads), strict=True):
            got = got.cpu().numpy() if isinstance(got, torch.Tensor) else got.get()
            np.testing.assert_allclose(got, expected, atol=2e-3)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    out, _ = attention_forward(*(torch.from_numpy(x).cuda() for x in (q, k, v)), PLAN, stream=side.cuda_stream)
    torch.cuda.synchronize()
    np.testing.assert_allclose(out.cpu().numpy(), want, atol=2e-3)


def test_tensors_that_require_grad():
    torch = pytest.importorskip("torch")
    q, k, v = (torch.from_numpy(x) for x in arrays())
    with pytest.raises(ValueError, match="slidetile.torch"):
        attention_forward(q.requires_grad_(), k, v, PLAN)
    with torch.no_grad():
        attention_forward(q, k, v, PLAN)


FORK = """
import os, sys, numpy as np, slidetile
plan = slidetile.full_plan("2x4x4", "2x4x4")
x = np.ones((1, 1, 32, 8), np.float32)
slidetile.attention_forward(x, x, x, plan)
child = os.fork()
out, _ = slidetile.attention_forward(x, x, x, plan)
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
sys.exit(0 if np.allclose(out, 1) else 1)
"""


def test_a_forked_child_runs_and_ends():
    """As a loader's workers do."""
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=120)


def test_kernels():
    for device in ("cpu", "cuda"):
        for direction in ("forward", "backward"):
            for kernel in slidetile.kernels(device, direction):
                assert kernel.name.startswith(device)
    with pytest.raises(ValueError, match="tpu"):
        slidetile.kernels("tpu")


def test_every_kernel_of_this_machine():
    q, k, v = arrays()
    want, _ = expected(q, k, v, PLAN)
    for kernel in slidetile.kernels():
        if not kernel.reason:
            np.testing.assert_allclose(attention_forward(q, k, v, PLAN, kernel=kernel.name)[0], want, atol=2e-5)


Q, K, V = arrays()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: attention_forward(Q[:, :, :9], K, V, PLAN), ValueError, "q has 9 tokens"),
        (lambda: attention_forward(Q, K[:, :, :9], V, PLAN), ValueError, "k has 9 tokens"),
        (lambda: attention_forward(Q, K[:1], V, PLAN), ValueError, "k is"),
        (lambda: attention_forward(Q[0], K, V, PLAN), ValueError, "3 axes"),
        (lambda: attention_forward(Q[:0], K, V, PLAN), ValueError, "none of them 0"),
        (lambda: attention_forward(Q, K, V.astype(np.float16), PLAN), ValueError, "f16"),
        (lambda: attention_forward(Q.astype(np.float64), K, V, PLAN), ValueError, "float32, bfloat16 or float16"),
        (lambda: attention_forward(Q.astype(np.int32), K, V, PLAN), ValueError, "float32, bfloat16 or float16"),
        (lambda: attention_forward(Q, K, V, PLAN, layout="hbsd"), ValueError, "hbsd"),
        (lambda: attention_forward(Q, K, V, PLAN, layout="bshd"), ValueError, "tokens"),
        (lambda: attention_forward(Q, K, V, PLAN, kernel="cpu.none"), NotImplementedError, "cpu.none"),
        (lambda: attention_forward(Q, K, V, PLAN, scale=float("nan")), ValueError, "scale"),
        (lambda: attention_forward(Q, K, V, PLAN, scale=0), ValueError, "scale is 0, expected"),
        (lambda: attention_forward(Q, K, V, PLAN, key_lengths=[TOKENS]), ValueError, "key_lengths"),
        (lambda: attention_forward(Q, K, V, PLAN, key_lengths=[TOKENS, 3]), ValueError, "key length 3"),
        (lambda: attention_forward(Q, K, V, PLAN, key_lengths=np.array([9.0, 9.0])), ValueError, "int32"),
        (lambda: attention_forward(Q[..., ::2], K[..., ::2], V[..., ::2], PLAN), ValueError, "stride"),
        (lambda: attention_forward(Q, K, V, PLAN, out=Q[:1].copy()), ValueError, "out is"),
        (lambda: attention_forward([1.0], K, V, PLAN), TypeError, "a list, expected an array that has DLPack"),
        (lambda: attention_forward(Q, K, V, full_plan((1, 1, TOKENS), (1, 1, 8)).data), TypeError, "a ndarray, expected slidetile.Plan"),
        (lambda: attention_forward(Q, K, V, sliding_tile_plan("4x6x8", ["1x1x1"] * 3, "2x4x4", after=5)),
         ValueError, "2 heads, the plan has 3"),
        (lambda: attention_forward(np.tile(Q, 17), np.tile(K, 17), np.tile(V, 17), PLAN), ValueError, "head_dim is 272"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_read_only_output():
    out = np.empty_like(Q)
    out.flags.writeable = False
    with pytest.raises((ValueError, BufferError), match="writable|read-only|readonly"):
        attention_forward(Q, K, V, PLAN, out=out)
