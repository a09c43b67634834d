"""Times one denoising step of real models at their real shapes, dense against sliding tile attention: python bench/models.py [--json FILE]

Transformers of diffusers from the released configurations, random weights in bf16: latency does not depend on the weights. Dense runs with
each of PyTorch's fast SDPA backends and the best counts; padding masks are dropped for it, since the text is full. Attention's share is
what a step costs beyond one whose attention calls return their values. HunyuanVideo: 1 pass a step (guidance is embedded); Wan: 2.
Before a pass is timed, the model runs at its full shape with two blocks of each kind: that compiles and chooses algorithms.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import pathlib
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from collections.abc import Callable

import diffusers
import torch
from diffusers.models.attention_dispatch import AttentionBackendName

import slidetile
import slidetile.diffusers as sd

HUNYUAN = {
    "in_channels": 16, "out_channels": 16, "num_attention_heads": 24, "attention_head_dim": 128, "num_layers": 20, "num_single_layers": 40,
    "num_refiner_layers": 2, "mlp_ratio": 4.0, "patch_size": 2, "patch_size_t": 1, "qk_norm": "rms_norm", "guidance_embeds": True,
    "text_embed_dim": 4096, "pooled_projection_dim": 768, "rope_theta": 256.0, "rope_axes_dim": (16, 56, 56),
}  # fmt: skip
WAN = {
    "patch_size": (1, 2, 2), "attention_head_dim": 128, "in_channels": 16, "out_channels": 16, "text_dim": 4096, "freq_dim": 256,
    "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "rope_max_seq_len": 1024,
}  # fmt: skip
WAN_1_3B = WAN | {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
WAN_14B = WAN | {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}

STACKS = ("blocks", "transformer_blocks", "single_transformer_blocks")
LONG = 10.0

# A few layers of a few channels, for --smoke.
SMALL_HUNYUAN = HUNYUAN | {
    "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "num_single_layers": 4, "num_refiner_layers": 1,
    "text_embed_dim": 32, "pooled_projection_dim": 16, "rope_axes_dim": (4, 6, 6),
}  # fmt: skip
SMALL_WAN = WAN | {"num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 64, "text_dim": 32, "num_layers": 4}


@dataclass(frozen=True)
class Case:
    """A model at the shape of one video: height, width and frames in pixels."""

    name: str
    config: dict
    video: tuple[int, int, int]
    passes: int  # of the transformer a sampling step
    steps: int = 50

    @property
    def latents(self) -> tuple[int, int, int]:
        height, width, frames = self.video
        return (frames - 1) // 4 + 1, height // 8, width // 8

    @property
    def is_hunyuan(self) -> bool:
        return "num_single_layers" in self.config


CASES = [
    Case("HunyuanVideo 768x1280x117", HUNYUAN, (768, 1280, 117), passes=1),
    Case("HunyuanVideo 720x1280x129", HUNYUAN, (720, 1280, 129), passes=1),
    Case("Wan2.1 1.3B 480x832x81", WAN_1_3B, (480, 832, 81), passes=2),
    Case("Wan2.1 1.3B 720x1280x81", WAN_1_3B, (720, 1280, 81), passes=2),
    Case("Wan2.1 14B 480x832x81", WAN_14B, (480, 832, 81), passes=2),
    Case("Wan2.1 14B 720x1280x81", WAN_14B, (720, 1280, 81), passes=2),
]
SMOKE = [
    Case("small HunyuanVideo", SMALL_HUNYUAN, (128, 192, 13), passes=1),
    Case("small Wan", SMALL_WAN, (128, 192, 13), passes=2),
]


@contextmanager
def defaults(dtype: torch.dtype, device: str):
    """Weights are made where they stay, in their type: 14 billion of them fit a card once, not twice."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def build(case: Case, device: str, dtype: torch.dtype, layers: int | None) -> torch.nn.Module:
    config = dict(case.config)
    if layers:
        for name in ("num_layers", "num_single_layers"):
            config[name] = min(layers, config[name]) if name in config else config.get(name)
        config = {name: value for name, value in config.items() if value is not None}
    kind = diffusers.HunyuanVideoTransformer3DModel if case.is_hunyuan else diffusers.WanTransformer3DModel
    with defaults(dtype, device):
        return kind(**config).eval().requires_grad_(False)


def inputs_of(case: Case, device: str, dtype: torch.dtype) -> dict:
    def random(*shape):
        return torch.randn(*shape, device=device, dtype=dtype)

    inputs = {"hidden_states": random(1, 16, *case.latents), "timestep": torch.full((1,), 500, device=device), "return_dict": False}
    if not case.is_hunyuan:
        return inputs | {"encoder_hidden_states": random(1, 512, case.config["text_dim"])}
    return inputs | {
        "encoder_hidden_states": random(1, 256, case.config["text_embed_dim"]),
        "encoder_attention_mask": torch.ones(1, 256, dtype=torch.long, device=device),
        "pooled_projections": random(1, case.config["pooled_projection_dim"]),
        "guidance": torch.full((1,), 6000.0, device=device, dtype=dtype),
    }


class LaterSteps:
    """The published strategy at a step after its dense ones, as a table of one step."""

    def __init__(self, step: int = 30, layers: int | None = None):
        self.table, self.at = slidetile.WindowTable.hunyuan(), step
        self.steps, self.layers, self.heads = 1, layers or self.table.layers, self.table.heads

    def windows(self, step: int, layer: int):
        return self.table.windows(self.at, layer)


@contextmanager
def attention_skipped():
    """Attention calls return their values: what is left is the rest of the model."""
    ours = sd.attention
    sd.attention = lambda query, key, value, *rest, **options: value
    try:
        yield
    finally:
        sd.attention = ours


@contextmanager
def two_blocks_of_each_kind(model: torch.nn.Module):
    """The model with its stacks cut to two blocks: the first one's input can have other strides than the rest's."""
    stacks = {name: stack for name, stack in model.named_children() if name in STACKS}
    for name, stack in stacks.items():
        setattr(model, name, torch.nn.ModuleList(list(stack)[:2]))
    try:
        yield
    finally:
        for name, stack in stacks.items():
            setattr(model, name, stack)
        if hasattr(model, "_slidetile"):
            model._slidetile.current = ()  # the other blocks have no plans yet


@dataclass
class Timed:
    """A pass: seconds (the median), bytes at the peak, its result."""

    seconds: float
    peak: int
    out: torch.Tensor


def measure(model: torch.nn.Module, run: Callable[[], torch.Tensor], device: str, repeats: int) -> Timed:
    """Passes of more than LONG seconds are timed once."""

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    with two_blocks_of_each_kind(model):
        run()
        wait()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    while len(times) < repeats and (not times or times[0] < LONG):
        start = time.perf_counter()
        out = run()
        wait()
        times.append(time.perf_counter() - start)
    return Timed(statistics.median(times), torch.cuda.max_memory_allocated() if device == "cuda" else 0, out)


def variants(model: torch.nn.Module, case: Case, smoke: bool) -> list[tuple[str, dict]]:
    tile = {"tile": (2, 4, 4)} if smoke else {}
    result = [("3x3x3", {"window": (3, 3, 3)} | tile), ("5x3x5", {"window": (5, 3, 5)} | tile)]
    layers = len(sd.MODELS[type(model).__name__].layers(model))
    if case.is_hunyuan and not smoke:
        result.append((LATER, {"strategy": LaterSteps(layers=layers)}))
    return result + [(ALL, {"window": (999, 999, 999)} | tile)]


LATER, ALL = "published strategy, later steps", "ours, all windows"


class Bench:
    """One case: its model, its inputs, and the rows measured so far."""

    def __init__(self, case: Case, options: argparse.Namespace, save: Callable[[list[dict]], None]):
        self.case, self.options, self.save = case, options, save
        self.device, self.dtype = ("cpu", torch.float32) if options.smoke else ("cuda", torch.bfloat16)
        torch.manual_seed(0)
        self.model = build(case, self.device, self.dtype, options.layers)
        self.inputs = inputs_of(case, self.device, self.dtype)
        self.attentions = sd.MODELS[type(self.model).__name__].layers(self.model)
        self.rows: list[dict] = []
        self.dense: Timed | None = None
        if options.compile:
            how = {"backend": "aot_eager"} if options.smoke else {}
            self.model.compile_repeated_blocks(fullgraph=True, **how)

    def run(self) -> torch.Tensor:
        with torch.inference_mode():
            return self.model(**self.inputs)[0]

    def time(self, name: str) -> Timed:
        timed = measure(self.model, self.run, self.device, self.options.repeats)
        self.record(name, timed.seconds, timed.peak)
        if self.dense is not None:
            difference = (timed.out.float() - self.dense.out.float()).norm() / self.dense.out.float().norm()
            self.rows[-1]["difference_from_dense"] = float(difference)
        return timed

    def record(self, name: str, seconds: float, peak: int) -> None:
        canvas = tuple(extent // size for extent, size in zip(self.case.latents, (1, 2, 2), strict=True))
        row = {"case": self.case.name, "canvas": "x".join(map(str, canvas)), "attention": name, "layers": len(self.attentions),
               "ms_a_step": seconds * self.case.passes * 1e3, "peak_bytes": peak,
               "seconds_for_all_steps": seconds * self.case.passes * self.case.steps}  # fmt: skip
        if self.dense is not None:
            row["speed_up"] = self.dense.seconds / seconds
        self.rows.append(row)
        self.save(self.rows)
        print(f"  {name}: {seconds * self.case.passes:.3f} s a step", file=sys.stderr, flush=True)

    def run_dense(self) -> None:
        """With each fast backend; the best is what the others are compared to."""

        def unmasked(module, args, kwargs):
            return args, kwargs | ({"attention_mask": None} if "attention_mask" in kwargs else {})

        hooks = [module.register_forward_pre_hook(unmasked, with_kwargs=True) for module in self.attentions]  # not the text refiner's
        timed = []
        for backend in ("native",) if self.options.smoke else ("_native_cudnn", "_native_flash"):
            for module in self.attentions:
                module.processor._attention_backend = AttentionBackendName(backend)
            try:
                timed.append(self.time(f"dense {backend.strip('_')}"))
            except Exception as error:
                print(f"  dense {backend}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            if self.options.quick and timed:
                break
        for hook, module in zip(hooks, self.attentions, strict=True):
            hook.remove()
            module.processor._attention_backend = None
        self.dense = min(timed, key=lambda entry: entry.seconds, default=None)
        for row in self.rows:
            row["speed_up"] = self.dense.seconds * self.case.passes * 1e3 / row["ms_a_step"]

    def run_ours(self) -> None:
        timed = {}
        for name, arguments in variants(self.model, self.case, self.options.smoke):
            if self.options.attention and name not in self.options.attention:
                continue
            sd.enable(self.model, **arguments)
            timed[name] = self.time(name).seconds
        if LATER in timed and self.dense is not None:
            table = slidetile.WindowTable.hunyuan()
            dense_steps = sum(table.sparsity("30x48x80", step=step) == 0 for step in range(table.steps))
            total = dense_steps * min(timed.get(ALL, math.inf), self.dense.seconds) + (table.steps - dense_steps) * timed[LATER]
            self.record("published strategy, 50 steps", total / table.steps, 0)

    def run_rest(self) -> None:
        """What a step costs without attention gives attention's share."""
        if self.options.quick and self.options.compile:
            return  # everything would be compiled again
        sd.enable(self.model, (1, 1, 1), tile=(2, 4, 4) if self.options.smoke else None)
        with attention_skipped():
            if self.options.compile:
                torch.compiler.reset()
            rest = measure(self.model, self.run, self.device, self.options.repeats).seconds
        for row in self.rows:
            row["attention_share"] = 1 - rest * self.case.passes * 1e3 / row["ms_a_step"]


def show(rows: list[dict]) -> None:
    for row in sorted(rows, key=lambda row: -row["ms_a_step"]):
        parts = [f"{row['case']:27} {row['canvas']:9} {row['attention']:32} {row['ms_a_step']:9.1f} ms a step"]
        if row.get("speed_up"):
            parts.append(f"{row['speed_up']:5.2f}x")
        if "attention_share" in row:
            parts.append(f"attention {row['attention_share']:4.0%}")
        if row["peak_bytes"]:
            parts.append(f"peak {row['peak_bytes'] / 2**30:5.1f} GiB")
        parts.append(f"{row['seconds_for_all_steps']:7.1f} s for all steps")
        if "difference_from_dense" in row:
            parts.append(f"difference {row['difference_from_dense']:.1e}")
        print("  ".join(parts), flush=True)


def commit() -> str:
    """Of the tree around this file; empty where there is none."""
    try:
        asked = ["git", "rev-parse", "--short", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, cwd=pathlib.Path(__file__).parent).stdout.strip()
    except OSError:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    parser.add_argument("--case", action="append", help="only cases whose name contains this; may be repeated")
    parser.add_argument("--attention", action="append", help="only these of ours; may be repeated")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes, where one takes less than 10 s (default: 3)")
    parser.add_argument("--quick", action="store_true", help="cuDNN alone for dense, and no share of attention where blocks are compiled")
    parser.add_argument("--layers", type=int, help="at most this many layers of a kind: not the real model any more")
    parser.add_argument("--compile", action="store_true", help="compile the models' blocks")
    parser.add_argument("--smoke", action="store_true", help="tiny models on the CPU: does it all run?")
    options = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    if not options.smoke and not torch.cuda.is_available():
        parser.error("needs a GPU of 80 GB; --smoke runs tiny models without one")
    stamp = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", "torch": torch.__version__,
             "diffusers": diffusers.__version__, "commit": commit(), "compiled": options.compile}  # fmt: skip

    def save(rows: list[dict]) -> None:
        if options.json:
            options.json.write_text(json.dumps(stamp | {"rows": rows}, indent=1))

    rows: list[dict] = []
    for case in SMOKE if options.smoke else CASES:
        if options.case and not any(part in case.name for part in options.case):
            continue
        bench = Bench(case, options, lambda new, done=rows: save(done + new))
        for part in (bench.run_dense, bench.run_ours, bench.run_rest):
            part()
        save(rows + bench.rows)
        show(bench.rows)
        rows += bench.rows
        del bench
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
