"""This library, from [b, s, h, d] in raster order: no permutes."""

import torch
from problem import Case, Problem

import slidetile
from slidetile.torch import attention

NAME = "slidetile"


def why_not(problem: Problem) -> str | None:
    return None


def prepare(problem: Problem, plan: slidetile.Plan | None = None) -> Case:
    q, k, v, dout = problem.tensors
    plan = plan or problem.plan
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    saved: list[torch.Tensor] = []

    def backward():
        if not saved:
            saved.append(attention(*inputs, plan, layout="bshd"))
        return torch.autograd.grad(saved[0], inputs, dout, retain_graph=True)

    return Case(lambda: attention(q, k, v, plan, layout="bshd"), backward)
