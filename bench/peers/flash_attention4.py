"""FlashAttention-4's block-sparse path (pip install flash-attn-4), lists from the plan; tokens permuted into tile order and back."""

import torch
from problem import Case, Problem

NAME = "FlashAttention-4 block-sparse"
BLOCK = 128


def why_not(problem: Problem) -> str | None:
    try:
        import flash_attn.cute.interface  # noqa: F401
    except ImportError as error:
        return f"not installed ({error})"
    return problem.why_not_blocks(BLOCK)


def _lists(rows: list[list[int]], problem: Problem):
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    count = len(rows)
    counts = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    indices = torch.zeros(count, count, dtype=torch.int32)
    for index, row in enumerate(rows):
        indices[index, : len(row)] = torch.tensor(row, dtype=torch.int32)
    counts = counts.expand(1, problem.heads, -1).contiguous().to(problem.device)
    indices = indices.expand(1, problem.heads, -1, -1).contiguous().to(problem.device)
    return BlockSparseTensorsTorch(torch.zeros_like(counts), torch.zeros_like(indices), counts, indices, block_size=(BLOCK, BLOCK))


def prepare(problem: Problem) -> Case:
    from flash_attn.cute.interface import flash_attn_func

    q, k, v, dout = problem.tensors
    rows, count = problem.blocks(BLOCK)
    columns = [[] for _ in range(count)]
    for query, row in enumerate(rows):
        for key in row:
            columns[key].append(query)
    lists = {"block_sparse_tensors": _lists(rows, problem), "block_sparse_tensors_bwd": _lists(columns, problem)}

    def tiled(x):  # [b, s, h, d] in tile order
        return problem.to_tile_order(x).contiguous()

    def attend(*inputs):
        return flash_attn_func(*inputs, **lists)[0]

    saved = []

    def backward():
        if not saved:
            inputs = [tiled(x).requires_grad_() for x in (q, k, v)]
            saved.append((attend(*inputs), inputs))
        out, inputs = saved[0]
        return [problem.to_raster_order(grad) for grad in torch.autograd.grad(out, inputs, tiled(dout), retain_graph=True)]

    return Case(lambda: problem.to_raster_order(attend(tiled(q), tiled(k), tiled(v))), backward)
