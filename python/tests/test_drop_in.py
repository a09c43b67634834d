"""sliding_tile_attention, in place of the published function: against its own definition of the mask, token by token."""

import itertools

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

import slidetile  # noqa: E402
from slidetile.torch import attention, sliding_tile_attention  # noqa: E402


def published_mask(canvas, window, tokens, text_length, has_text):
    """(image & window) | image to text | text to all, for tokens tile by tile. A window's centre is clamped so that it stays inside."""
    tiles = [list(range(-(-extent // size))) for extent, size in zip(canvas, (6, 8, 8), strict=True)]
    of_token = []
    for tile in itertools.product(*tiles):
        sizes = [min(size, extent - size * at) for size, extent, at in zip((6, 8, 8), canvas, tile, strict=True)]
        of_token += [tile] * (sizes[0] * sizes[1] * sizes[2])
    image = len(of_token)
    at = torch.tensor(of_token)
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    seen = torch.ones(image, image, dtype=torch.bool)
    for axis, extent in enumerate(window):
        n, half = len(tiles[axis]), extent // 2
        if extent < n:
            centre = at[:, axis].clamp(half, n - 1 - half)
            seen &= (at[None, :, axis] - centre[:, None]).abs() <= half
    mask[:image, :image] = seen
    if has_text:
        mask[:, image : image + text_length] = True
        mask[image:, :image] = True
    return mask


@pytest.mark.parametrize("device", ["cpu"] + (["cuda"] if torch.cuda.is_available() else []))
@pytest.mark.parametrize(
    "shape, windows, text, text_length, head_dim",
    [
        ("6x16x24", [(1, 1, 1), (1, 2, 3), (3, 3, 1)], 40, 17, 16),
        ("12x8x16", [(1, 1, 1), (2, 2, 2), (5, 1, 1)], 0, 0, 64),
        ("7x9x19", [(1, 1, 3), (3, 1, 1), (1, 1, 1)], 70, 70, 24),  # 6x8x8 does not divide it
        ("3x10x9", [(1, 1, 1)] * 3, 5, 0, 80),  # a canvas that is thinner than a tile
    ],
)
def test_against_the_published_definition(shape, windows, text, text_length, head_dim, device):
    canvas = tuple(map(int, shape.split("x")))
    tokens = canvas[0] * canvas[1] * canvas[2] + text
    q, k, v = (torch.randn(1, 3, tokens, head_dim, device=device, requires_grad=True) for _ in range(3))
    dout = torch.randn(1, 3, tokens, head_dim, device=device)
    mask = torch.stack([published_mask(canvas, window, tokens, text_length, text > 0) for window in windows]).to(device)
    out = sliding_tile_attention(q, k, v, windows, text_length, text > 0, shape)
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    for got, expected in zip(torch.autograd.grad(out, (q, k, v), dout), torch.autograd.grad(want, (q, k, v), dout), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)


def test_it_is_our_attention_in_another_order():
    canvas, window = (6, 16, 24), (1, 1, 2)
    order = torch.from_numpy(slidetile.Grid(canvas).tile_order()).long()
    q, k, v = torch.randn(3, 1, 2, 6 * 16 * 24, 32).unbind(0)
    out = sliding_tile_attention(*(x[:, :, order] for x in (q, k, v)), [window] * 2, 0, False, "6x16x24")
    torch.testing.assert_close(out, attention(q, k, v, slidetile.sliding_tile_plan(canvas, window))[:, :, order])


def test_one_graph():
    q = torch.randn(1, 2, 6 * 8 * 16 + 7, 8)

    def function(q):
        return sliding_tile_attention(q, q, q, [(1, 1, 1), (1, 1, 2)], 3, True, "6x8x16")

    torch.testing.assert_close(torch.compile(function, fullgraph=True, backend="aot_eager")(q), function(q))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([(1, 1, 1)] * 2, 0, True, "6x8x24"), "q has 775 tokens, expected 1152"),
        (([(1, 1, 1)] * 2, 0, False, "6x8x16"), "q has 775 tokens, expected 768"),
        (([(1, 1, 1)] * 2, 8, True, "6x8x16"), "text_length is 8, expected 0 to 7"),
        (([(1, 1, 1)] * 3, 7, True, "6x8x16"), "2 heads, the plan has 3"),
        (([(0, 1, 1)] * 2, 7, True, "6x8x16"), "0x1x1"),
        (([(1, 1, 1)] * 2, 7, True, "6x8"), "6x8"),
        (([(1, 1, 1)] * 2, 7, True, "6xax8"), "expected three extents"),
    ],
)
def test_bad_input(arguments, message):
    q = torch.randn(1, 2, 775, 8)
    with pytest.raises(ValueError, match=message):
        sliding_tile_attention(q, q, q, *arguments)
