"""Dense scaled_dot_product_attention by cuDNN."""

import torch
import torch.nn.functional as F
from problem import Case, Problem
from torch.nn.attention import SDPBackend, sdpa_kernel

NAME = "SDPA cuDNN (dense)"
BACKEND = SDPBackend.CUDNN_ATTENTION


def why_not(problem: Problem) -> str | None:
    return None if problem.device == "cuda" else "needs a GPU"


def prepare(problem: Problem, backend: SDPBackend = BACKEND) -> Case:
    q, k, v, dout = (x.transpose(1, 2) for x in problem.tensors)
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    saved: list[torch.Tensor] = []

    def attention(*qkv):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*qkv)

    def backward():
        if not saved:
            saved.append(attention(*inputs))
        return [grad.transpose(1, 2) for grad in torch.autograd.grad(saved[0], inputs, dout, retain_graph=True)]

    return Case(lambda: attention(q, k, v).transpose(1, 2), backward, dense=True)
