"""Dense scaled_dot_product_attention by PyTorch's FlashAttention-2."""

import sdpa_cudnn
from problem import Case, Problem
from torch.nn.attention import SDPBackend

NAME = "SDPA flash (dense)"
why_not = sdpa_cudnn.why_not


def prepare(problem: Problem) -> Case:
    return sdpa_cudnn.prepare(problem, SDPBackend.FLASH_ATTENTION)
