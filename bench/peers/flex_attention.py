"""FlexAttention with the plan's blocks as full blocks of a BlockMask; tokens permuted into tile order and back."""

import torch
from problem import Case, Problem
from torch.nn.attention.flex_attention import BlockMask, flex_attention

NAME = "FlexAttention"
BLOCK = 128


def why_not(problem: Problem) -> str | None:
    return problem.why_not_blocks(BLOCK)


def block_mask(problem: Problem) -> BlockMask:
    rows, count = problem.blocks(BLOCK)
    counts = torch.tensor([len(row) for row in rows], dtype=torch.int32, device=problem.device).view(1, 1, count)
    indices = torch.zeros(1, 1, count, count, dtype=torch.int32)
    for index, row in enumerate(rows):
        indices[0, 0, index, : len(row)] = torch.tensor(row, dtype=torch.int32)
    indices = indices.to(problem.device)
    none = torch.zeros_like(counts), torch.zeros_like(indices)
    return BlockMask.from_kv_blocks(*none, counts, indices, BLOCK_SIZE=BLOCK)


def prepare(problem: Problem) -> Case:
    q, k, v, dout = problem.tensors
    mask = block_mask(problem)
    flex = torch.compile(flex_attention, dynamic=False)

    def forward():
        return problem.untiled(flex(problem.tiled(q), problem.tiled(k), problem.tiled(v), block_mask=mask))

    saved = []

    def backward():
        if not saved:
            inputs = [problem.tiled(x).requires_grad_() for x in (q, k, v)]
            saved.append((flex(*inputs, block_mask=mask), inputs))
        out, inputs = saved[0]
        grads = torch.autograd.grad(out, inputs, problem.tiled(dout), retain_graph=True)
        return [problem.untiled(grad) for grad in grads]

    return Case(forward, backward if problem.device == "cuda" else None)
