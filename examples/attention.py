"""Trains a tiny video layer through sliding tile attention: pip install .[torch], then python examples/attention.py"""

import torch

import slidetile
from slidetile.torch import attention

torch.manual_seed(0)
plan = slidetile.sliding_tile_plan(canvas="8x16x16", window="3x3x3", tile="2x4x4")
print(f"{plan.query_tokens} tokens, {plan.sparsity:.0%} of the pairs skipped, {plan.forward_flops(head_dim=16, heads=2) / 1e6:.0f} MFLOP")


class Layer(torch.nn.Module):
    def __init__(self, dim=32, heads=2):
        super().__init__()
        self.heads, self.qkv, self.out = heads, torch.nn.Linear(dim, 3 * dim), torch.nn.Linear(dim, dim)

    def forward(self, x):  # [batch, tokens, dim], tokens in raster order
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # views: no copies
        return x + self.out(attention(q, k, v, plan, layout="bshd").flatten(2))


video = torch.randn(1, plan.query_tokens, 32)
target = video.unflatten(1, (8, 16, 16)).roll(2, dims=3).flatten(1, 3)  # move two tokens to the right: needs neighbours
layer = Layer()
optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
for step in range(6):
    loss = torch.nn.functional.mse_loss(layer(video), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.4f}")
