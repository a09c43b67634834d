"""Sliding tile attention inside the transformers of diffusers: ``enable(pipe)`` and ``disable(pipe)``.

A model's own attention processors keep running, with their projections, norms, rotary embeddings and adapters; only the call that they make
for the attention itself goes to :func:`slidetile.torch.attention`. To use it in a model that is not listed here, write a processor that
calls ``slidetile.torch.attention(q, k, v, plan, layout="bshd")`` where it would call ``scaled_dot_product_attention``.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn as _dense_attention

from .plans import DEFAULT_TILE, Dim, Plan, _per_head, dim3, sliding_tile_plan, three
from .torch import attention

__all__ = ["Controller", "disable", "enable", "known_models"]

IMAGE_TILE = (1, 16, 16)


class Geometry(NamedTuple):
    """Where the canvas is in a model's sequence: its extent, and the tokens before and after it."""

    canvas: tuple[int, int, int]
    before: int = 0
    after: int = 0


# ---- Geometry of each model, from the arguments of its forward. ----


def _patched(hidden_states: torch.Tensor, patch: Sequence[int]) -> tuple[int, int, int]:
    return three(extent // size for extent, size in zip(hidden_states.shape[2:], patch, strict=True))


def _wan_geometry(config, arguments: dict[str, Any]) -> Geometry:
    return Geometry(_patched(arguments["hidden_states"], config.patch_size))


def _hunyuan_video_geometry(config, arguments: dict[str, Any]) -> Geometry:
    patch = config.patch_size_t, config.patch_size, config.patch_size
    return Geometry(_patched(arguments["hidden_states"], patch), after=arguments["encoder_hidden_states"].shape[1])


def _hunyuan_video15_geometry(config, arguments: dict[str, Any]) -> Geometry:
    patch = config.patch_size_t, config.patch_size, config.patch_size
    streams = "encoder_hidden_states", "encoder_hidden_states_2", "image_embeds"
    after = sum(arguments[name].shape[1] for name in streams if arguments.get(name) is not None)
    return Geometry(_patched(arguments["hidden_states"], patch), after=after)


def _flux_geometry(config, arguments: dict[str, Any]) -> Geometry:
    ids = arguments["img_ids"]
    height, width = _image_extent(ids[0] if ids.ndim == 3 else ids)
    after = ids.shape[-2] - height * width
    return Geometry((1, height, width), before=arguments["encoder_hidden_states"].shape[1], after=after)


def _image_extent(ids: torch.Tensor) -> tuple[int, int]:
    """Rows (0, y, x) in raster order; reference images, if any, follow with another first coordinate."""
    first = ids.detach().float().cpu()
    first = first[: int((first[:, 0] == first[0, 0]).int().cumprod(0).sum())]
    width = int((first[:, 1] == first[0, 1]).int().cumprod(0).sum())
    return first.shape[0] // width, width


def _timestep(arguments: dict[str, Any], geometry: Geometry) -> torch.Tensor:
    """One number of a forward: the timestep of its batch, or what its tokens' sum to."""
    timestep = arguments["timestep"].detach().double()
    return timestep.sum() / max(timestep.shape[0] if timestep.dim() else 1, 1)


def _minimax_h3_timestep(arguments: dict[str, Any], geometry: Geometry) -> torch.Tensor:
    """That of the generated video's rows. Conditions and audio in the same sequence have timesteps of their own."""
    return arguments["timestep"][arguments["timestep_indices"][geometry.before]].double()


def _minimax_h3_geometry(config, arguments: dict[str, Any]) -> Geometry:
    return _packed_video(arguments["position_ids"], arguments["token_tags"])


def _packed_video(position_ids: torch.Tensor, token_tags: torch.Tensor) -> Geometry:
    """The generated video is the last run of video rows (tag 0). Frames are runs of one time; keyframes that stand right before it share
    its grid, but time does not advance from them to the first frame."""
    times, heights = position_ids[:, 0].tolist(), position_ids[:, 1].tolist()
    tags = token_tags.tolist()
    stop = len(tags) - tags[::-1].index(0)
    start = stop
    while start > 0 and tags[start - 1] == 0:
        start -= 1
    frame = next((n for n in range(1, stop - start) if times[stop - 1 - n] != times[stop - 1]), stop - start)
    width = next((n for n in range(1, frame) if heights[stop - 1 - n] != heights[stop - 1]), frame)
    frames = 1
    while (begin := stop - (frames + 1) * frame) >= start and times[begin] < times[begin + frame]:
        if times[begin] != times[begin + frame - 1]:
            break
        frames += 1
    begin = stop - frames * frame
    return Geometry((frames, frame // width, width), before=begin, after=len(tags) - stop)


@dataclass(frozen=True)
class Model:
    """How a kind of transformer is taken over."""

    layers: Callable[[Any], list[Any]]
    """Its self-attention modules, in the order of a strategy's layers."""
    geometry: Callable[[Any, dict[str, Any]], Geometry]
    tile: tuple[int, int, int] = DEFAULT_TILE
    watched: tuple[str, ...] = ()
    """Tensors whose content says the geometry: it is worked out again where one of them changed."""
    timestep: Callable[[dict[str, Any], Geometry], torch.Tensor] = _timestep
    """A number that every step of a run has its own of, in one direction."""


def _stacks(*names: str, attention_name: str = "attn") -> Callable[[Any], list[Any]]:
    return lambda model: [getattr(block, attention_name) for name in names for block in getattr(model, name)]


MODELS = {
    "WanTransformer3DModel": Model(_stacks("blocks", attention_name="attn1"), _wan_geometry),
    "HunyuanVideoTransformer3DModel": Model(_stacks("transformer_blocks", "single_transformer_blocks"), _hunyuan_video_geometry),
    "HunyuanVideo15Transformer3DModel": Model(_stacks("transformer_blocks"), _hunyuan_video15_geometry),
    "MiniMaxH3Transformer3DModel": Model(
        _stacks("transformer_blocks"), _minimax_h3_geometry, watched=("position_ids", "token_tags"), timestep=_minimax_h3_timestep
    ),
    "FluxTransformer2DModel": Model(_stacks("transformer_blocks", "single_transformer_blocks"), _flux_geometry, IMAGE_TILE, ("img_ids",)),
}


def known_models() -> list[str]:
    """Names of the transformer classes that :func:`enable` knows."""
    return list(MODELS)


# ---- The attention call of the processors. ----


def _dispatch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    attention_kwargs: dict[str, Any] | None = None,
    *,
    backend: Any = None,
    parallel_config: Any = None,
) -> torch.Tensor:
    """Stands for diffusers' dispatch_attention_fn in the processors below, which pass themselves as ``backend``. [b, s, h, d]."""
    plan = backend.plan
    if plan is None or key.shape[1] != plan.key_tokens or query.shape[1] != plan.query_tokens:
        return _dense_attention(
            query,
            key,
            value,
            attn_mask=attn_mask,
            dropout_p=dropout_p,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            attention_kwargs=attention_kwargs,
            backend=backend.dense_backend,
            parallel_config=parallel_config,
        )
    if parallel_config is not None:
        raise NotImplementedError("slidetile: diffusers' context parallelism is not supported together with sliding tile attention")
    return attention(query, key, value, plan, scale, _lengths(attn_mask), layout="bshd")


def _lengths(mask: torch.Tensor | None) -> torch.Tensor | None:
    """int32 [batch] from a key padding mask, bool [batch, 1, 1, tokens], whose padding comes last."""
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2] != 1:
        raise NotImplementedError(
            f"slidetile: an attention mask of {tuple(mask.shape)}, {mask.dtype}; expected a key padding mask, bool [batch, 1, 1, tokens]"
        )
    return mask[:, 0, 0].sum(-1, dtype=torch.int32)


def _hunyuan_video15_call(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
    """The model's own processor spells the padding out as a mask of tokens x tokens, 13 GB at 115,200 tokens. Lengths say the same."""
    if self.plan is None or encoder_hidden_states is None:
        return self.dense_call(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
    from diffusers.models.embeddings import apply_rotary_emb

    def split(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(2, (attn.heads, -1))

    query, key, value = (split(project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v))
    query, key = attn.norm_q(query), attn.norm_k(key)
    if image_rotary_emb is not None:
        query, key = (apply_rotary_emb(tensor, image_rotary_emb, sequence_dim=1) for tensor in (query, key))
    text = [split(project(encoder_hidden_states)) for project in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
    for index, norm in enumerate((attn.norm_added_q, attn.norm_added_k)):
        if norm is not None:
            text[index] = norm(text[index])
    query, key, value = (torch.cat(pair, dim=1) for pair in zip((query, key, value), text, strict=True))
    lengths = hidden_states.shape[1] + attention_mask.bool().sum(-1, dtype=torch.int32)
    out = attention(query, key, value, self.plan, None, lengths, layout="bshd").flatten(2, 3).to(query.dtype)
    video, words = out.split_with_sizes([hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1)
    return attn.to_out[1](attn.to_out[0](video)), attn.to_add_out(words)


@functools.cache
def _processor_class(original: Any) -> type:
    """A subclass of a processor class whose attention calls go to _dispatch."""
    call = inspect.unwrap(original.__call__)
    if not isinstance(call, types.FunctionType) or "dispatch_attention_fn" not in call.__code__.co_names:
        raise NotImplementedError(
            f"slidetile: processor {original.__name__} does not call diffusers' dispatch_attention_fn; "
            "write one of your own with slidetile.torch.attention"
        )
    # The same code with other globals. They are a module's so that torch.compile finds them by name.
    scope = types.ModuleType(f"{__name__}.{original.__name__}")
    scope.__dict__.update({**call.__globals__, "__name__": scope.__name__, "dispatch_attention_fn": _dispatch})
    sys.modules[scope.__name__] = scope
    ours = types.FunctionType(call.__code__, scope.__dict__, call.__name__, call.__defaults__, call.__closure__)
    ours.__kwdefaults__ = call.__kwdefaults__
    members: dict[str, Any] = {"__call__": ours, "plan": None, "dense_backend": None}
    if original.__name__ == "HunyuanVideo15AttnProcessor2_0":
        members |= {"__call__": _hunyuan_video15_call, "dense_call": ours}

    def set_dense_backend(self, backend) -> None:
        self.dense_backend = backend

    members["_attention_backend"] = property(lambda self: self, set_dense_backend)
    return type("SlidingTile" + original.__name__, (original,), members)


def _wrap(processor: Any) -> Any:
    kind: Any = _processor_class(type(processor))  # type: ignore[arg-type]
    ours: Any = kind.__new__(kind)
    ours.__dict__.update(processor.__dict__)
    ours.dense_backend = processor._attention_backend
    return ours


# ---- Windows, steps, and the hooks that keep them current. ----


@dataclass
class _Steps:
    """Counts sampling steps by the timesteps that models are called with: a new value is a new step, and one against the run's direction is
    a new run. Passes of one step (guidance, two experts) share its value."""

    step: int = 0
    last: float | None = None
    direction: float = 0.0

    def see(self, timestep: torch.Tensor) -> int:
        value = float(timestep)
        if self.last is not None and value != self.last:
            direction = 1.0 if value > self.last else -1.0
            if self.direction in (0.0, direction):
                self.step, self.direction = self.step + 1, direction
            else:
                self.step, self.direction = 0, 0.0
        self.last = value
        return self.step


@dataclass
class _Windows:
    """The windows of every layer and step."""

    window: list[tuple[int, int, int]]
    table: Any = None
    dense_steps: int = 0
    dense_layers: frozenset[int] = frozenset()

    def by_step(self) -> bool:
        return self.table is not None or self.dense_steps > 0

    def at(self, step: int, layer: int) -> tuple[tuple[int, int, int], ...] | None:
        if step < self.dense_steps or layer in self.dense_layers:
            return None
        if self.table is None:
            return tuple(self.window)
        return tuple(tuple(window) for window in self.table.windows(min(step, self.table.steps - 1), layer))


class Controller:
    """What :func:`enable` returns: the transformers taken over, the step that sampling is at, and ``disable()``."""

    def __init__(self, windows: _Windows, tile: Dim | None):
        self._windows = windows
        self._tile = None if tile is None else dim3(tile)
        self._steps = _Steps()
        self._plans: dict[tuple, Plan] = {}
        self.transformers: list[_Taken] = []

    @property
    def step(self) -> int:
        """The sampling step that the last forward was part of, from 0. It is counted only where windows depend on it."""
        return self._steps.step

    def disable(self) -> None:
        """Gives the transformers their own processors back."""
        for taken in self.transformers:
            taken.restore()
        self.transformers = []

    def plan(self, geometry: Geometry, windows: tuple | None, tile: tuple[int, int, int]) -> Plan | None:
        """The plan of a layer; None: dense."""
        if windows is None:
            return None
        tile = three(min(axis, extent) for axis, extent in zip(self._tile or tile, geometry.canvas, strict=True))
        key = geometry, windows, tile
        if key not in self._plans:
            if len(self._plans) >= 128:
                self._plans.clear()
            extra = {"before": geometry.before, "after": geometry.after}
            self._plans[key] = sliding_tile_plan(geometry.canvas, list(windows), tile, **extra)
        return self._plans[key]


@dataclass
class _Taken:
    """One transformer with our processors in it."""

    model: Any
    spec: Model
    controller: Controller
    originals: list[Any] = field(default_factory=list)
    hook: Any = None
    seen: tuple = ()
    current: tuple = ()
    geometry: Geometry | None = None

    def take(self) -> None:
        layers = self.spec.layers(self.model)
        self.originals = [layer.processor for layer in layers]
        ours = [_wrap(processor) for processor in self.originals]  # all of them, before any is changed
        for layer, processor in zip(layers, ours, strict=True):
            layer.set_processor(processor)
        signature = inspect.signature(inspect.unwrap(type(self.model).forward))

        # Not traced: it reads the timestep and makes plans, and a compiled model then finds them in its processors.
        @torch.compiler.disable
        def before_forward(module, args, kwargs):
            self.prepare(signature.bind_partial(module, *args, **kwargs).arguments)

        self.hook = self.model.register_forward_pre_hook(before_forward, with_kwargs=True)
        self.model._slidetile = self

    def restore(self) -> None:
        for layer, processor in zip(self.spec.layers(self.model), self.originals, strict=True):
            layer.set_processor(processor)
        self.hook.remove()
        del self.model._slidetile

    def find_geometry(self, arguments: dict[str, Any]) -> Geometry:
        # Reading a tensor's content waits for the device, so it is read once; holding it keeps its identity from being reused.
        watched = tuple(arguments[name] for name in self.spec.watched)
        same = len(watched) == len(self.seen) and all(
            tensor is known and tensor._version == version for tensor, (known, version) in zip(watched, self.seen, strict=True)
        )
        if self.geometry is None or not watched or not same:
            self.geometry = self.spec.geometry(self.model.config, arguments)
            self.seen = tuple((tensor, tensor._version) for tensor in watched)
        elif "encoder_hidden_states" in arguments and self.spec.watched == ("img_ids",):
            self.geometry = self.geometry._replace(before=arguments["encoder_hidden_states"].shape[1])
        return self.geometry

    def prepare(self, arguments: dict[str, Any]) -> None:
        windows, controller = self.controller._windows, self.controller
        geometry = self.find_geometry(arguments)
        step = controller._steps.see(self.spec.timestep(arguments, geometry)) if windows.by_step() else 0
        if self.current == (geometry, step):
            return
        for layer, module in enumerate(self.spec.layers(self.model)):
            module.processor.plan = controller.plan(geometry, windows.at(step, layer), self.spec.tile)
        self.current = geometry, step


def _unwrap(module: Any) -> Any:
    return getattr(module, "_orig_mod", module)


def _spec_of(module: Any) -> Model | None:
    return next((MODELS[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in MODELS), None)


def _transformers_of(target: Any) -> list[tuple[torch.nn.Module, Model]]:
    """The transformers that we know in a pipeline, or the one given."""
    if isinstance(target, torch.nn.Module):
        candidates = [target]
    elif isinstance(getattr(target, "components", None), dict):
        candidates = [part for part in target.components.values() if isinstance(part, torch.nn.Module)]
    else:
        raise TypeError(f"slidetile: {type(target).__name__} is neither a pipeline nor a transformer of diffusers")
    found = [_unwrap(module) for module in candidates]
    known = [(module, spec) for module in found if (spec := _spec_of(module)) is not None]
    if not known:
        names = ", ".join(sorted({type(module).__name__ for module in found})) or "no model"
        raise ValueError(
            f"slidetile: found {names}, expected one of {', '.join(MODELS)}. "
            "For another model write a processor that calls slidetile.torch.attention"
        )
    return known


def _table_of(strategy: Any) -> Any:
    if strategy is None or not isinstance(strategy, (str, bytes)) and hasattr(strategy, "windows"):
        return strategy
    from .tables import WindowTable

    return WindowTable.hunyuan() if strategy == "hunyuan" else WindowTable.load(strategy)


def _check(windows: _Windows, module: torch.nn.Module, spec: Model) -> None:
    layers = spec.layers(module)
    name = type(module).__name__
    outside = [layer for layer in windows.dense_layers if not 0 <= layer < len(layers)]
    if outside:
        raise ValueError(f"dense_layers: {outside}, {name} has layers 0 to {len(layers) - 1}")
    heads = layers[0].heads
    if len(windows.window) not in (1, heads):
        raise ValueError(f"window: {len(windows.window)} windows, expected one, or one for each of the {heads} heads of {name}")
    table = windows.table
    if table is not None and (table.layers, table.heads) != (len(layers), heads):
        raise ValueError(f"strategy: {table.layers} layers of {table.heads} heads, {name} has {len(layers)} of {heads}")


def enable(
    pipe_or_transformer: Any,
    window: Dim | Iterable[Dim] = (3, 3, 3),
    *,
    tile: Dim | None = None,
    strategy: Any = None,
    dense_steps: int = 0,
    dense_layers: Iterable[int] = (),
) -> Controller:
    """Puts sliding tile attention into the self-attention of a pipeline's transformers, or of one transformer. Cross-attention stays.

    ``window`` is in tiles of ``tile`` tokens (6x8x8 for video, 1x16x16 for images, never larger than the canvas): one for all heads or a
    list of one per head. ``strategy`` gives windows per step, layer and head instead: "hunyuan" (the published search for HunyuanVideo),
    the path of such a file, or a ``WindowTable``; steps past its end use its last. The first ``dense_steps`` sampling steps and the layers
    in ``dense_layers`` stay dense. Canvas, text and steps are read from the calls. Guidance, batches, padding masks, LoRA, offloading and
    ``torch.compile`` (before or after) work as they did.

    Returns a :class:`Controller`. Calling it again replaces what was enabled before.

    Raises ValueError for models it does not know (the message names those it knows) and for windows, layers or tables that do not fit.
    """
    if not isinstance(dense_steps, int) or dense_steps < 0:
        raise ValueError(f"dense_steps is {dense_steps!r}, expected 0 or more")
    modules = _transformers_of(pipe_or_transformer)
    windows = _Windows(_per_head(window, "window"), _table_of(strategy), dense_steps, frozenset(dense_layers))
    if any(axis < 1 for one in windows.window for axis in one):
        raise ValueError(f"window: {window!r}, expected positive extents in tiles")
    for module, spec in modules:
        _check(windows, module, spec)
    disable(pipe_or_transformer)
    controller = Controller(windows, tile)
    for module, spec in modules:
        taken = _Taken(module, spec, controller)
        taken.take()
        controller.transformers.append(taken)
    return controller


def disable(pipe_or_transformer: Any) -> None:
    """Gives every transformer its own processors back. Does nothing where nothing was enabled."""
    for module, _ in _transformers_of(pipe_or_transformer):
        taken = getattr(module, "_slidetile", None)
        if taken is not None:
            taken.restore()
