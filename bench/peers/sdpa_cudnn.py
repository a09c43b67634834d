"""Dense scaled_dot_product_attention by cuDNN."""

import torch.nn.functional as F
from problem import Case, Problem
from torch.nn.attention import SDPBackend, sdpa_kernel

NAME = "SDPA cuDNN (dense)"
BACKEND = SDPBackend.CUDNN_ATTENTION


def why_not(problem: Problem) -> str | None:
    return None if problem.device == "cuda" else "needs a GPU"


def prepare(problem: Problem, backend: SDPBackend = BACKEND) -> Case:
    q, k, v = (x.transpose(1, 2) for x in problem.tensors[:3])

    def forward():
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return Case(forward, dense=True)
