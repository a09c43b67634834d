"""A Wan pipeline with random weights, dense against sliding tile attention: pip install .[diffusers], then python examples/diffusers_wan.py

With a GPU the transformer has the width of Wan2.1 1.3B and four of its layers at 480x832x81; without one everything is small.
For real videos load the weights: pipe = WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"), then
slidetile.diffusers.enable(pipe).
"""

import time

import diffusers
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

import slidetile.diffusers

diffusers.utils.logging.set_verbosity_error()

gpu = torch.cuda.is_available()
device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
torch.manual_seed(0)
width = (
    {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 4} if gpu else {"num_attention_heads": 2, "ffn_dim": 128, "num_layers": 2}
)
with torch.device(device):
    transformer = WanTransformer3DModel(attention_head_dim=128 if gpu else 32, text_dim=64, **width).to(dtype).eval()
scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
pipe = WanPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=transformer, scheduler=scheduler)
pipe.set_progress_bar_config(disable=True)

size = {"height": 480, "width": 832, "num_frames": 81} if gpu else {"height": 128, "width": 192, "num_frames": 13}
words = torch.randn(2, 1, 16, 64, device=device, dtype=dtype)


def sample():
    start = time.perf_counter()
    latents = pipe(
        prompt_embeds=words[0], negative_prompt_embeds=words[1], num_inference_steps=2, output_type="latent",
        generator=torch.Generator(device).manual_seed(0), **size,
    ).frames  # fmt: skip
    return latents.float().cpu(), time.perf_counter() - start


def report(name, latents, seconds):
    difference = (latents - dense).norm() / dense.norm()
    print(f"{name:22} {seconds:7.2f} s   difference from dense {difference:.2e}")


sample()  # warm up
dense, seconds = sample()
report("dense", dense, seconds)
for name, window in (("window as the canvas", (99, 99, 99)), ("window 3x3x3", (3, 3, 3)), ("window 1x3x3", (1, 3, 3))):
    slidetile.diffusers.enable(pipe, window, tile=None if gpu else (2, 4, 4))
    sample()
    report(name, *sample())
slidetile.diffusers.disable(pipe)
