"""slidetile.torch against scaled_dot_product_attention and FlexAttention with the same mask, forward and gradients."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import slidetile  # noqa: E402
import slidetile.torch as stt  # noqa: E402
from slidetile import full_plan, natten_plan, sliding_tile_plan  # noqa: E402

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}

PLANS = {
    "sliding": lambda: sliding_tile_plan("4x6x8", "1x2x1", "2x4x4"),
    "text": lambda: sliding_tile_plan("3x5x7", [(1, 1, 2), (2, 1, 1)], "2x4x4", before=3, after=6),
    "image": lambda: sliding_tile_plan((1, 20, 12), (1, 1, 1), (1, 8, 8), before=5),
    "masks": lambda: natten_plan("3x6x6", "3x3x3", "2x4x4"),
    "dense": lambda: full_plan("2x5x5", "2x4x4"),
}


def tensors(plan, device="cpu", dtype=torch.float32, layout="bhsd", head_dim=32):
    shape = (2, 2, plan.query_tokens, head_dim)
    result = [torch.randn(shape, device=device, dtype=torch.float32).to(dtype) for _ in range(4)]
    return [(x.transpose(1, 2).contiguous() if layout == "bshd" else x).requires_grad_(i < 3) for i, x in enumerate(result)]


def masks(plan, device="cpu"):
    return torch.stack([torch.from_numpy(plan.mask(head if plan.heads > 1 else 0)) for head in range(2)]).to(device)


def gradients(function, q, k, v, dout):
    out = function(q, k, v)
    return (out, *torch.autograd.grad(out, (q, k, v), dout))


def dense(plan, layout="bhsd"):
    def function(q, k, v):
        if layout == "bshd":
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=masks(plan, q.device)).to(q.dtype)
        return out.transpose(1, 2) if layout == "bshd" else out

    return function


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("name", PLANS)
def test_against_sdpa(name, layout, device):
    plan = PLANS[name]()
    for dtype, tolerance in TOLERANCE.items():
        if device == "cuda" and dtype == torch.float32:
            tolerance = 2e-3
        inputs = tensors(plan, device, dtype, layout)
        ours = gradients(lambda q, k, v: stt.attention(q, k, v, plan, layout=layout), *inputs)
        theirs = gradients(dense(plan, layout), *inputs)
        for got, want in zip(ours, theirs, strict=True):
            assert got.shape == want.shape and got.dtype == dtype
            error = (got.float() - want.float()).norm() / want.float().norm()
            assert error < tolerance, (name, dtype, float(error))


@settings(max_examples=15, deadline=None)
@given(
    canvas=st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)),
    window=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    text=st.tuples(st.integers(0, 3), st.integers(0, 9)),
    head_dim=st.sampled_from([1, 8, 24, 64]),
)
def test_random_problems_against_sdpa(canvas, window, text, head_dim):
    tile = tuple(min(pair) for pair in zip(canvas, (2, 3, 3), strict=True))
    plan = sliding_tile_plan(canvas, window, tile, before=text[0], after=text[1])
    inputs = tensors(plan, head_dim=head_dim)
    for got, want in zip(gradients(lambda q, k, v: stt.attention(q, k, v, plan), *inputs), gradients(dense(plan), *inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_against_flex_attention(device):
    """The same tiles as a BlockMask: tokens in tile order, blocks of one tile. FlexAttention has no gradients on the CPU."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    canvas, tile, window = (4, 16, 16), (2, 8, 8), (1, 1, 2)
    plan = sliding_tile_plan(canvas, window, tile)
    order = torch.from_numpy(slidetile.Grid(canvas, tile).tile_order()).long().to(device)
    rows = [plan.key_tiles(tile_index) for tile_index in range(plan.query_tiles)]
    counts = torch.tensor([[[len(row) for row in rows]]], dtype=torch.int32, device=device)
    indices = torch.zeros(1, 1, len(rows), len(rows), dtype=torch.int32, device=device)
    for index, row in enumerate(rows):
        indices[0, 0, index, : len(row)] = torch.tensor(row)
    mask = masks(plan, device)[0][order][:, order]
    blocks = BlockMask.from_kv_blocks(counts, indices, BLOCK_SIZE=128, mask_mod=lambda b, h, q, k: mask[q, k])
    flex = torch.compile(flex_attention) if device == "cuda" else flex_attention
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    inputs = tensors(plan, device, dtype)
    inverse = order.argsort()

    def theirs(q, k, v):
        return flex(*(x[:, :, order] for x in (q, k, v)), block_mask=blocks)[:, :, inverse]

    def ours(q, k, v):
        return stt.attention(q, k, v, plan)

    if device == "cpu":
        pairs = [(f(*(x.detach() for x in inputs[:3])),) for f in (ours, theirs)]
    else:
        pairs = [gradients(f, *inputs) for f in (ours, theirs)]
    for got, want in zip(*pairs, strict=True):
        assert (got.float() - want.float()).norm() / want.float().norm() < (2e-5 if device == "cpu" else 2e-2)


def test_lse_and_scale():
    plan = PLANS["text"]()
    q, k, v, _ = tensors(plan)
    out, lse = stt.attention(q, k, v, plan, 0.1, return_lse=True)
    scores = (q @ k.transpose(-1, -2) * 0.1).masked_fill(~masks(plan), -torch.inf)
    torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=1e-5, atol=1e-5)
    assert out.requires_grad and not lse.requires_grad
    assert (
        stt.attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), plan, layout="bshd", return_lse=True)[1].shape == lse.shape
    )


# head_dim 64 and 128 in bf16 and f16: the Hopper kernels' problems, on a GPU that has them.
WIDE_PLANS = {
    "video": lambda: sliding_tile_plan("12x16x24", "1x1x3", "6x8x8"),
    "video with text": lambda: sliding_tile_plan("7x20x17", [(1, 1, 2), (2, 2, 1)], "6x8x8", after=70),
    "image": lambda: sliding_tile_plan((1, 40, 50), (1, 1, 2), (1, 16, 16), before=40),
    "small tiles": lambda: sliding_tile_plan("8x12x12", "1x2x2", "4x4x4", after=3),
    "dense": lambda: full_plan("4x16x16", "4x8x8", after=9),
}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", WIDE_PLANS)
def test_wide_heads_against_sdpa(name, head_dim):
    plan = WIDE_PLANS[name]()
    for dtype in (torch.bfloat16, torch.float16):
        for layout in ("bhsd", "bshd"):
            inputs = tensors(plan, "cuda", dtype, layout, head_dim)
            ours = gradients(lambda q, k, v, layout=layout: stt.attention(q, k, v, plan, layout=layout), *inputs)
            theirs = gradients(dense(plan, layout), *inputs)
            for got, want in zip(ours, theirs, strict=True):
                error = (got.float() - want.float()).norm() / want.float().norm()
                assert error < TOLERANCE[dtype], (name, dtype, layout, float(error))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype, head_dim", [(torch.float32, 32), (torch.bfloat16, 96), (torch.bfloat16, 128), (torch.float16, 64)])
def test_the_same_bits_with_and_without_lse(dtype, head_dim, device):
    plan = PLANS["text"]()
    q, k, v, _ = (x.detach() for x in tensors(plan, device, dtype, head_dim=head_dim))
    assert torch.equal(stt.attention(q, k, v, plan), stt.attention(q, k, v, plan, return_lse=True)[0])


@pytest.mark.parametrize("device", DEVICES)
def test_the_direct_call_and_the_operator_agree(device):
    plan = PLANS["text"]()
    inputs = tensors(plan, device)
    q, k, v, dout = inputs

    def operator(q, k, v):
        return torch.ops.slidetile.attention_forward(q, k, v, plan.tensor, None, 0.0, "bhsd", "")[0]

    for got, want in zip(gradients(lambda *qkv: stt.attention(*qkv, plan), *inputs), gradients(operator, *inputs), strict=True):
        assert torch.equal(got, want)
    counted = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            counted.append(function)
            return function(*args, **(kwargs or {}))

    with Count():  # a mode still sees the operator
        stt.attention(q, k, v, plan)
    assert torch.ops.slidetile.attention_forward.default in counted


@pytest.mark.parametrize("device", DEVICES)
def test_without_the_exchange_interface(device, monkeypatch):
    """PyTorch before 2.10: the same bits from addresses and strides."""
    plan = PLANS["text"]()
    inputs = tensors(plan, device)
    lengths = torch.tensor([plan.query_tokens, plan.query_tokens - 2], dtype=torch.int32)
    want = gradients(lambda *qkv: stt.attention(*qkv, plan, key_lengths=lengths), *inputs)
    monkeypatch.setattr(stt, "_READS_TENSORS", False)
    for got, expected in zip(gradients(lambda *qkv: stt.attention(*qkv, plan, key_lengths=lengths), *inputs), want, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_key_lengths_and_their_gradients(device):
    plan = sliding_tile_plan("2x4x4", "1x1x1", "2x4x4", after=6)
    q, k, v, dout = tensors(plan, device)
    lengths = torch.tensor([34, 38])
    out, *grads = gradients(lambda q, k, v: stt.attention(q, k, v, plan, key_lengths=lengths), q, k, v, dout)
    q2, k2, v2 = (x[:1, :, :34] for x in (q, k, v))
    want = gradients(dense(sliding_tile_plan("2x4x4", "1x1x1", "2x4x4", after=2)), q2, k2, v2, dout[:1, :, :34])
    for got, expected in zip((out, *grads), want, strict=True):
        torch.testing.assert_close(got[:1, :, :34], expected, rtol=1e-4, atol=1e-5)
        assert (got[0, :, 34:] == 0).all()


def op_arguments(plan, device, grad=False):
    q, k, v, dout = (x.detach().requires_grad_(grad and i < 3) for i, x in enumerate(tensors(plan, device)))
    return q, k, v, dout, torch.from_numpy(plan.data)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    for name in ("sliding", "text"):
        q, k, v, dout, data = op_arguments(PLANS[name](), device, grad=True)
        torch.library.opcheck(torch.ops.slidetile.attention_forward.default, (q, k, v, data, None, 0.2, "bhsd", ""))
        out, lse = torch.ops.slidetile.attention_forward(q, k, v, data, None, 0.2, "bhsd", "")
        backward = [x.detach() for x in (dout, q, k, v, out, lse)]
        torch.library.opcheck(torch.ops.slidetile.attention_backward.default, (*backward, data, None, 0.2, "bhsd", ""))
    swapped = [x.detach().transpose(1, 2) for x in (q, k, v)]
    lengths = torch.tensor([plan_tokens := q.shape[2], plan_tokens - 2], dtype=torch.int32, device=device)
    torch.library.opcheck(torch.ops.slidetile.attention_forward.default, (*swapped, data, lengths, 0.0, "bshd", ""))


class Layer(torch.nn.Module):
    def __init__(self, plan, dim=16):
        super().__init__()
        self.plan = plan
        self.qkv = torch.nn.Linear(dim, 3 * dim)
        self.out = torch.nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).unbind(2)
        return x + self.out(stt.attention(q, k, v, self.plan, layout="bshd").flatten(2))


def test_compile_makes_one_graph_that_serves_other_plans():
    layer = Layer(sliding_tile_plan("2x6x8", "1x1x1", "2x4x4"))
    x = torch.randn(2, 96, 16)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, fullgraph=True, backend=count)
    for window in ("1x1x1", "1x2x1", "1x2x2", "1x1x2"):
        layer.plan = sliding_tile_plan("2x6x8", window, "2x4x4")
        torch.testing.assert_close(compiled(x), layer(x))
    assert len(graphs) == 1  # the number of bytes of a plan is a variable


@pytest.mark.parametrize("device", DEVICES)
def test_compile_with_gradients(device):
    layer = Layer(sliding_tile_plan("2x6x8", "1x1x2", "2x4x4")).to(device)
    x = torch.randn(2, 96, 16, device=device)
    layer(x).square().sum().backward()
    want = layer.qkv.weight.grad.clone()
    layer.zero_grad()
    backend = "inductor" if device == "cuda" else "aot_eager_decomp_partition"  # the CPU's inductor runs a C++ compiler for a minute
    torch.compile(layer, fullgraph=True, backend=backend)(x).square().sum().backward()
    torch.testing.assert_close(layer.qkv.weight.grad, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant, device):
    from torch.utils.checkpoint import checkpoint

    layer = Layer(sliding_tile_plan("2x6x8", "1x1x1", "2x4x4")).to(device)
    x = torch.randn(2, 96, 16, device=device, requires_grad=True)
    layer(x).square().sum().backward()
    want = x.grad.clone()
    x.grad = None
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close(x.grad, want)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast(device):
    plan = PLANS["sliding"]()
    q, k, v, _ = tensors(plan, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = stt.attention(q, k.bfloat16(), v, plan)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32 and torch.isfinite(q.grad).all()


def test_dispatch_modes_and_inference():
    plan = PLANS["sliding"]()
    q, k, v, _ = tensors(plan)
    with torch.inference_mode():
        out = stt.attention(q.detach(), k.detach(), v.detach(), plan)
    torch.testing.assert_close(out, stt.attention(q, k, v, plan).detach())
    fake = torch.empty(2, 2, plan.query_tokens, 8, device="meta")
    assert stt.attention(fake, fake, fake, plan).shape == fake.shape


def test_second_derivatives_are_refused():
    plan = PLANS["dense"]()
    q, k, v, dout = tensors(plan)
    (grad,) = torch.autograd.grad(stt.attention(q, k, v, plan), q, dout, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()


P = full_plan("2x4x4", "2x4x4")
Q = torch.randn(1, 2, 32, 8)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: stt.attention(Q.double(), Q.double(), Q.double(), P), ValueError, "float32, bfloat16 or float16"),
        (lambda: stt.attention(Q.double().requires_grad_(), Q.double(), Q.double(), P), ValueError, "float32, bfloat16"),
        (lambda: stt.attention(Q.to(torch.complex64), Q, Q, P), ValueError, "float32, bfloat16"),
        (lambda: stt.attention(Q.int(), Q.int(), Q.int(), P), ValueError, "float32, bfloat16"),
        (lambda: stt.attention(Q, Q.bfloat16(), Q, P), ValueError, "bf16"),
        (lambda: stt.attention(Q[0], Q[0], Q[0], P), ValueError, "axes"),
        (lambda: stt.attention(torch.tensor(1.0), Q, Q, P), ValueError, "axes"),
        (lambda: stt.attention(Q[:0], Q[:0], Q[:0], P), ValueError, "none of them 0"),
        (lambda: stt.attention(Q[:, :, :31], Q, Q, P), ValueError, "q has 31 tokens, the plan covers 32"),
        (lambda: stt.attention(Q, Q, Q, P, layout="sbhd"), ValueError, "sbhd"),
        (lambda: stt.attention(Q, Q, Q, "plan"), TypeError, "expected slidetile.Plan"),
        (lambda: stt.attention([1.0], Q, Q, P), TypeError, "list, Tensor, Tensor, expected torch.Tensor"),
        (lambda: stt.attention(Q, Q.to("meta"), Q, P), ValueError, "on cpu, meta, cpu, expected one device"),
        (lambda: stt.attention(Q, Q, Q, torch.zeros(64, dtype=torch.uint8)), ValueError, "not a plan"),
        (lambda: stt.attention(Q, Q, Q, P, key_lengths=[31]), ValueError, "key length 31"),
        (lambda: stt.attention(Q, Q, Q, P, key_lengths=[32, 32]), ValueError, "key_lengths"),
        (lambda: stt.attention(Q, Q, Q, P, key_lengths=[31.5]), ValueError, "key_lengths: torch.float32, expected integers"),
        (lambda: stt.attention(Q, Q, Q, P, key_lengths=[True]), ValueError, "key_lengths: torch.bool, expected integers"),
        (lambda: stt.attention(Q, Q, Q, P, 0.0), ValueError, "scale is 0.0"),
        (lambda: stt.attention(Q, Q, Q, P, torch.inf), ValueError, "scale is inf"),
        (lambda: stt.attention(Q, Q, Q[..., :4], P), ValueError, "v is"),
        (lambda: stt.attention(Q[..., :0], Q, Q, P), ValueError, "none of them 0"),
        (lambda: stt.attention(Q, Q, Q, P, kernel="cuda.sm90"), NotImplementedError, "cuda.sm90"),
        (lambda: stt.attention(Q.to_sparse(), Q, Q, P), (NotImplementedError, RuntimeError), ""),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message or None):
        call()


@pytest.mark.parametrize("change", [lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), lambda x: x.mT.contiguous().mT,
                                    lambda x: torch.cat([x, x], -1)[..., :8], lambda x: x.expand(2, -1, -1, -1)])  # fmt: skip
def test_any_strides(change):
    q, k, v = torch.randn(3, 1, 2, 32, 8).unbind(0)
    out = stt.attention(change(q), change(k), change(v), P)
    torch.testing.assert_close(out[:1], F.scaled_dot_product_attention(q, k, v))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@needs_gpu
def test_cuda_graph():
    plan = sliding_tile_plan("6x16x16", "1x1x2", "6x8x8", after=40)
    q, k, v = (torch.randn(1, 2, plan.query_tokens, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    want = stt.attention(q, k, v, plan)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = stt.attention(q, k, v, plan)
    out.zero_()
    graph.replay()
    assert torch.equal(out, want)


@needs_gpu
def test_compiled_into_cuda_graphs():
    """They must not keep the plan that they were captured with."""
    plans = [sliding_tile_plan("2x8x8", window, "2x4x4") for window in ("1x1x2", "1x2x1")]
    assert len(plans[0].data) == len(plans[1].data)
    layer, x = Layer(plans[0]).cuda(), torch.randn(2, 128, 16, device="cuda")
    compiled = torch.compile(layer, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        for plan in (plans[0], plans[0], plans[0], plans[1], plans[1]):
            layer.plan = plan
            torch.testing.assert_close(compiled(x).clone(), layer(x), rtol=1e-4, atol=1e-4)


@needs_gpu
def test_cuda_graph_of_a_training_step():
    plan = sliding_tile_plan("6x16x16", "1x1x2", "6x8x8", after=40)
    inputs = tensors(plan, "cuda", torch.bfloat16, head_dim=128)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # as PyTorch asks: autograd remembers streams
        want = [x.detach().clone() for x in gradients(lambda q, k, v: stt.attention(q, k, v, plan), *inputs)]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = gradients(lambda q, k, v: stt.attention(q, k, v, plan), *inputs)
    with torch.no_grad():
        for result in got:
            result.zero_()
    graph.replay()
    for result, expected in zip(got, want, strict=True):
        assert torch.equal(result, expected)


@needs_gpu
@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda q, p: stt.attention(q, q.cpu(), q, p), ValueError, "k is on cpu"),
        (lambda q, p: stt.attention(q.cpu(), q, q, p), ValueError, "k is on cuda"),
        (lambda q, p: stt.attention(q, q.half(), q, p), ValueError, "k is f16"),
        (lambda q, p: stt.attention(q.double(), q.double(), q.double(), p), ValueError, "float32, bfloat16 or float16"),
        (lambda q, p: stt.attention(q[:, :, :9], q, q, p), ValueError, "q has 9 tokens"),
        (lambda q, p: stt.attention(q[:0], q[:0], q[:0], p), ValueError, "none of them 0"),
        (lambda q, p: stt.attention(q, q, q, p.tensor.cuda()), ValueError, "expected the host"),
        (lambda q, p: stt.attention(q, q, q, p, kernel="cpu.portable"), NotImplementedError, "cpu.portable"),
        (lambda q, p: torch.ops.slidetile.attention_forward(q, q, q, p.tensor, torch.tensor([32], dtype=torch.int32), 0.0, "bhsd", ""),
         ValueError, "key_lengths: on cpu"),
    ],
)  # fmt: skip
def test_bad_input_on_a_gpu(call, error, message):
    with pytest.raises(error, match=message):
        call(Q.cuda().bfloat16(), P)
    torch.cuda.synchronize()


@needs_gpu
def test_streams_and_devices():
    plan = sliding_tile_plan("6x16x16", "1x1x2", "6x8x8")
    q, k, v = (torch.randn(1, 2, plan.query_tokens, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    want = stt.attention(q, k, v, plan)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        out = stt.attention(q, k, v, plan)
    torch.cuda.synchronize()
    assert torch.equal(out, want)
    with pytest.raises(ValueError, match="is on cpu"):
        stt.attention(q, k.cpu(), v, plan)
