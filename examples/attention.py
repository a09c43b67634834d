"""Trains a tiny video layer through sliding tile attention: pip install .[torch], then python examples/attention.py"""

import torch

import slidetile
from slidetile.torch import attention

torch.manual_seed(0)
plan = slidetile.sliding_tile_plan(canvas="8x16x16", window="3x3x3", tile="2x4x4")
video = torch.randn(1, plan.query_tokens, 32)  # [batch, tokens, dim], tokens in raster order
target = video.unflatten(1, (8, 16, 16)).roll(2, dims=3).flatten(1, 3)  # everything two tokens to the right: needs neighbours
qkv, out = torch.nn.Linear(32, 3 * 32), torch.nn.Linear(32, 32)
optimizer = torch.optim.Adam([*qkv.parameters(), *out.parameters()], lr=1e-2)
for step in range(6):
    q, k, v = qkv(video).unflatten(-1, (3, 2, -1)).unbind(2)  # [batch, tokens, 2 heads, 16] each: views, no copies
    loss = torch.nn.functional.mse_loss(video + out(attention(q, k, v, plan, layout="bshd").flatten(2)), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.4f}")
