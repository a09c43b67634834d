"""Writes tests/data/dit_*.safetensors and scheduler.safetensors: what diffusers computes for small Wan transformers and both schedulers.

python tools/make_dit_goldens.py     with torch 2.11 and diffusers 0.42.1

Weights and inputs come from a rule that tests/dit_test.cpp shares (fill below), so that the files hold results alone.
"""

from __future__ import annotations

import json
import pathlib

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanTransformer3DModel
from safetensors.torch import save_file

DATA = pathlib.Path(__file__).parents[1] / "tests" / "data"
BASE = {"freq_dim": 32, "text_dim": 20, "rope_max_seq_len": 64, "cross_attn_norm": True}
# A canvas that no tile divides, one and more patches a token, and heads of 128, 64 and 12.
CASES = {
    "128": (BASE | {"num_attention_heads": 2, "attention_head_dim": 128, "ffn_dim": 96, "num_layers": 2, "in_channels": 4, "out_channels": 4}, (5, 14, 10)),
    "64": (BASE | {"num_attention_heads": 3, "attention_head_dim": 64, "ffn_dim": 80, "num_layers": 3, "in_channels": 5, "out_channels": 3,
                   "patch_size": (1, 4, 4)}, (7, 20, 12)),
    "12": (BASE | {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 4, "in_channels": 3, "out_channels": 3,
                   "patch_size": (2, 1, 1), "cross_attn_norm": False}, (6, 7, 9)),
}  # fmt: skip


def fill(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers from -1 to 1 that depend on name, place and nothing else: 24 bits of a hash of both."""
    seed = 2166136261
    for byte in name.encode():
        seed = (seed ^ byte) * 16777619 % 2**32
    count = 1
    for extent in shape:
        count *= extent
    x = (torch.arange(count, dtype=torch.int64) * 2654435761 + seed) % 2**32
    for _ in range(2):
        x = (x ^ (x >> 15)) * 739982445 % 2**32
    x ^= x >> 13
    return ((x >> 8).double() * 2.0**-23 - 1).float().reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if name.endswith("weight") and len(shape) == 1:  # of a norm
        return 1 + 0.25 * fill(name, shape)
    inputs = 1
    for extent in shape[1:]:
        inputs *= extent
    return fill(name, shape) * (1.5 / inputs**0.5 if name.endswith("weight") else 0.5)


def dit(name: str, config: dict, extent: tuple[int, int, int]) -> None:
    model = WanTransformer3DModel(**config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(weight(key, tuple(parameter.shape)))
    batch = 2
    latents = fill("latents", (batch, config["in_channels"], *extent)).requires_grad_()
    text = fill("text", (batch, 7, config["text_dim"])).requires_grad_()
    timestep = torch.tensor([637.5, 12.0])
    out = model(hidden_states=latents, timestep=timestep, encoder_hidden_states=text).sample
    (out * fill("dout", tuple(out.shape))).sum().backward()
    # Gradients of every parameter as one number each, of the inputs whole.
    grads = {"grad." + key: (parameter.grad * fill(key + ".probe", tuple(parameter.shape))).sum().reshape(1) for key, parameter in model.named_parameters()}
    tensors = {"out": out.detach(), "dlatents": latents.grad, "dtext": text.grad} | grads
    written = {key: value for key, value in model.config.items() if not key.startswith("_")}
    save_file(tensors, DATA / f"dit_{name}.safetensors", {"config": json.dumps({"_class_name": "WanTransformer3DModel"} | written)})


def trajectory(scheduler, steps: int) -> torch.Tensor:
    """Samples after each step; the model is a fixed function of the sample and the time."""
    scheduler.set_timesteps(steps)
    sample, samples = fill("sample", (1, 3, 2, 4, 4)), []
    for step, time in enumerate(scheduler.timesteps):
        velocity = torch.tanh(sample * 1.5) * (0.3 + float(time) / 1000) - 0.25 * fill(f"drift{step}", tuple(sample.shape))
        sample = scheduler.step(velocity, time, sample, return_dict=False)[0]
        samples.append(sample)
    return torch.cat(samples)


def schedulers() -> None:
    tensors = {}
    for shift in (1.0, 3.0, 5.0):
        for steps in (1, 2, 3, 10, 30):
            euler = FlowMatchEulerDiscreteScheduler(shift=shift)
            uni_pc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
            for kind, scheduler in (("euler", euler), ("unipc", uni_pc)):
                key = f"{kind}.{shift:g}.{steps}"
                tensors[key] = trajectory(scheduler, steps)
                tensors[key + ".sigmas"] = scheduler.sigmas.clone()
                tensors[key + ".timesteps"] = scheduler.timesteps.float()
    save_file(tensors, DATA / "scheduler.safetensors", {"euler": FlowMatchEulerDiscreteScheduler(shift=3).to_json_string(),
                                                       "unipc": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3).to_json_string()})  # fmt: skip


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    for name, (config, extent) in CASES.items():
        dit(name, config, extent)
    schedulers()
