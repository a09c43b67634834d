"""Dense scaled_dot_product_attention with the backend that PyTorch chooses: the dense peer on a CPU."""

import torch.nn.functional as F
from problem import Case, Problem

NAME = "SDPA (dense)"


def why_not(problem: Problem) -> str | None:
    return "a GPU has its own SDPA peers" if problem.device == "cuda" else None


def prepare(problem: Problem) -> Case:
    q, k, v = (x.transpose(1, 2) for x in problem.tensors[:3])
    return Case(lambda: F.scaled_dot_product_attention(q, k, v).transpose(1, 2), dense=True)
