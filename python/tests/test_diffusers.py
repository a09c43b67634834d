"""Real transformers and pipelines of diffusers with small random weights."""

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import slidetile.diffusers as sd  # noqa: E402

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
TILE = (2, 4, 4)
ALL = (99, 99, 99)


def wan(layers=2, **config):
    config = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 16} | config
    small = {"freq_dim": 32, "ffn_dim": 32, "rope_max_seq_len": 64, "num_layers": layers}
    return diffusers.WanTransformer3DModel(**config, **small).eval()


def wan_inputs(batch=2):
    return {
        "hidden_states": torch.randn(batch, 4, 5, 12, 16),
        "timestep": torch.full((batch,), 999.0),
        "encoder_hidden_states": torch.randn(batch, 12, 16),
    }


def hunyuan_video():
    return diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=2,
        num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True, text_embed_dim=16, pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    ).eval()  # fmt: skip


def hunyuan_video_inputs():
    mask = torch.zeros(2, 9, dtype=torch.int64)
    mask[0, :4], mask[1, :9] = 1, 1
    return {
        "hidden_states": torch.randn(2, 4, 5, 12, 16),
        "timestep": torch.full((2,), 999),
        "encoder_hidden_states": torch.randn(2, 9, 16),
        "encoder_attention_mask": mask,
        "pooled_projections": torch.randn(2, 8),
        "guidance": torch.full((2,), 6000.0),
    }


def hunyuan_video15():
    return diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_refiner_layers=1,
        patch_size=1, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=8, image_embed_dim=12, rope_axes_dim=(4, 6, 6),
    ).eval()  # fmt: skip


def hunyuan_video15_inputs():
    mask, mask2 = torch.zeros(2, 7, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)
    mask[0, :4], mask[1, :7], mask2[1, :2] = 1, 1, 1
    return {
        "hidden_states": torch.randn(2, 9, 5, 6, 8),
        "timestep": torch.full((2,), 999.0),
        "encoder_hidden_states": torch.randn(2, 7, 16),
        "encoder_attention_mask": mask,
        "encoder_hidden_states_2": torch.randn(2, 3, 8),
        "encoder_attention_mask_2": mask2,
        "image_embeds": torch.zeros(2, 5, 12),
    }


def minimax_h3():
    return diffusers.MiniMaxH3Transformer3DModel(
        num_attention_heads=2, attention_head_dim=16, hidden_size=24, num_layers=2, num_refiner_layers=1, ffn_dim=32, in_channels=4,
        audio_in_channels=6, patch_size=(1, 2, 2), text_dim=16, freq_dim=32, time_embed_hidden_dim=24, time_embed_dim=16, rope_freq_dim=2,
    ).eval()  # fmt: skip


def minimax_h3_inputs(keyframe=True):
    """[text 6 | keyframe 1x6x8 | audio 10 | video 5x6x8]"""
    text, frame, audio, frames = 6, 48, 10, 5
    conditions = frame if keyframe else 0
    rows = text + conditions + audio + frames * frame
    start = text + conditions + audio
    grid = torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij"), -1).reshape(-1, 2)
    ids = torch.zeros(rows, 3)
    ids[:text, 0] = torch.arange(text)
    if keyframe:
        ids[text : text + frame, 0], ids[text : text + frame, 1:] = text, grid
    ids[text + conditions : start, 0] = text + torch.arange(audio)
    ids[start:, 0], ids[start:, 1:] = text + torch.arange(frames).repeat_interleave(frame) * 1.5, grid.repeat(frames, 1)
    video = torch.cat([torch.arange(text, text + conditions), torch.arange(start, rows)])
    tags = torch.ones(rows, dtype=torch.long)
    tags[video], tags[text + conditions : start] = 0, 2
    return {
        "hidden_states": torch.randn(1, len(video), 16),
        "audio_hidden_states": torch.randn(1, audio, 6),
        "encoder_hidden_states": torch.randn(1, text, 16),
        "timestep": torch.tensor([0.5]),
        "timestep_indices": torch.zeros(rows, dtype=torch.long),
        "token_tags": tags,
        "position_ids": ids,
        "video_indices": video,
        "audio_indices": torch.arange(text + conditions, start),
        "text_indices": torch.arange(text),
    }


def flux():
    return diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(4, 6, 6),
    ).eval()  # fmt: skip


def flux_inputs(height=10, width=12, reference=0):
    ids = torch.zeros(height, width, 3)
    ids[..., 1], ids[..., 2] = torch.arange(height)[:, None], torch.arange(width)[None]
    extra = torch.ones(reference, 3)
    return {
        "hidden_states": torch.randn(2, height * width + reference, 4),
        "encoder_hidden_states": torch.randn(2, 7, 16),
        "pooled_projections": torch.randn(2, 8),
        "timestep": torch.full((2,), 0.9),
        "img_ids": torch.cat([ids.reshape(-1, 3), extra]),
        "txt_ids": torch.zeros(7, 3),
    }


MODELS = {
    "wan": (wan, wan_inputs, (5, 6, 8), (0, 0)),
    "hunyuan_video": (hunyuan_video, hunyuan_video_inputs, (5, 6, 8), (0, 9)),
    "hunyuan_video15": (hunyuan_video15, hunyuan_video15_inputs, (5, 6, 8), (0, 15)),
    "minimax_h3": (minimax_h3, minimax_h3_inputs, (5, 6, 8), (64, 0)),
    "minimax_h3_text_only": (minimax_h3, lambda: minimax_h3_inputs(keyframe=False), (5, 6, 8), (16, 0)),
    "flux": (flux, flux_inputs, (1, 10, 12), (7, 0)),
    "flux_with_reference": (flux, lambda: flux_inputs(reference=11), (1, 10, 12), (7, 11)),
}


def run(model, inputs):
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]


def on(device, inputs):
    return {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_whole_canvas_equals_dense(name, device):
    make_model, make_inputs, canvas, extra = MODELS[name]
    model, inputs = make_model().to(device), on(device, make_inputs())
    dense = run(model, inputs)
    controller = sd.enable(model, ALL, tile=TILE)
    full = run(model, inputs)
    geometry = controller.transformers[0].geometry
    assert (geometry.canvas, (geometry.before, geometry.after)) == (canvas, extra)
    torch.testing.assert_close(full, dense, rtol=1e-4, atol=1e-5)
    assert not torch.equal(full, dense) or name == "wan"  # it went through our kernels

    sd.enable(model, (1, 1, 1), tile=TILE)
    sparse = run(model, inputs)
    assert torch.isfinite(sparse).all()
    assert (sparse - dense).abs().max() > 1e-4

    sd.disable(model)
    assert torch.equal(run(model, inputs), dense)
    assert not any("SlidingTile" in type(p).__name__ for p in model.attn_processors.values())


def test_padding_does_not_reach_the_video():
    model, inputs = hunyuan_video(), hunyuan_video_inputs()
    sd.enable(model, (1, 2, 2), tile=TILE)
    first = run(model, inputs)
    inputs["encoder_hidden_states"][0, 4:] = 1e3
    torch.testing.assert_close(run(model, inputs), first)


def test_a_sparse_wan_layer_equals_a_masked_dense_one():
    """The processor with our plan against diffusers' own with the plan's mask."""
    model, inputs = wan(layers=1), wan_inputs()
    controller = sd.enable(model, (2, 1, 1), tile=TILE)
    ours = run(model, inputs)
    plan = model.blocks[0].attn1.processor.plan
    sd.disable(model)
    attention, mask = model.blocks[0].attn1, torch.from_numpy(plan.mask())
    forward = attention.forward
    attention.forward = lambda x, _, __, rotary: forward(x, None, mask, rotary)
    torch.testing.assert_close(ours, run(model, inputs), rtol=1e-4, atol=1e-5)
    assert controller.transformers == [] or plan.sparsity > 0.5


def test_steps_are_counted_by_timesteps():
    model, inputs = wan(), wan_inputs()
    dense = run(model, inputs)
    controller = sd.enable(model, (1, 1, 1), tile=TILE, dense_steps=2)
    for _ in range(2):  # two runs
        for expected, timestep in enumerate([999.0, 750.0, 500.0]):
            for _ in range(2):  # guidance: two passes a step
                inputs["timestep"] = torch.full((2,), timestep)
                out = run(model, inputs)
                assert controller.step == expected
            if timestep == 999.0:
                assert torch.equal(out, dense)
    assert model.blocks[0].attn1.processor.plan is not None


def test_dense_layers():
    model, inputs = wan(), wan_inputs()
    dense = run(model, inputs)
    sd.enable(model, (1, 1, 1), tile=TILE, dense_layers=(0, 1))
    assert torch.equal(run(model, inputs), dense)
    sd.enable(model, (1, 1, 1), tile=TILE, dense_layers=[1])
    assert not torch.equal(run(model, inputs), dense)


class Table:
    """A strategy: dense at step 0, then a window for each head."""

    steps, layers, heads = 2, 2, 2

    def windows(self, step, layer):
        return [(9, 9, 9)] * 2 if step == 0 else [(1, 1, 1), (2, 2, 1)]


def test_strategy():
    model, inputs = wan(), wan_inputs()
    dense = run(model, inputs)
    sd.enable(model, strategy=Table(), tile=TILE)
    torch.testing.assert_close(run(model, inputs), dense, rtol=1e-4, atol=1e-5)
    inputs["timestep"] = inputs["timestep"] - 100
    run(model, inputs)
    assert model.blocks[0].attn1.processor.plan.heads == 2
    with pytest.raises(ValueError, match="60 layers of 24 heads, WanTransformer3DModel has 2 of 2"):
        sd.enable(model, strategy="hunyuan")
    with pytest.raises(OSError):
        sd.enable(model, strategy="absent.json")
    with pytest.raises(ValueError, match="2 layers of 2 heads"):
        sd.enable(wan(layers=1), strategy=Table())


def test_one_step_of_two_resolutions():
    model = wan()
    sd.enable(model, (1, 1, 1), tile=TILE)
    run(model, wan_inputs())
    inputs = wan_inputs() | {"hidden_states": torch.randn(2, 4, 3, 8, 12)}
    run(model, inputs)
    assert model.blocks[0].attn1.processor.plan.canvas == (3, 4, 6)


@pytest.mark.parametrize("when", ["before", "after"])
def test_compiled_as_one_graph(when):
    model, inputs = wan(), wan_inputs()
    if when == "after":
        sd.enable(model, (1, 2, 1), tile=TILE)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    sd.enable(compiled, (1, 2, 1), tile=TILE)
    expected = run(model, inputs)
    torch.testing.assert_close(run(compiled, inputs), expected)


def test_compiled_blocks_are_not_compiled_again():
    model, inputs = wan(layers=12), wan_inputs()
    sd.enable(model, strategy=type("Many", (Table,), {"layers": 12, "windows": lambda s, t, n: [(1, 1 + n % 3, 1 + t % 2), (2, 1, 1)]})(),
              tile=TILE)  # fmt: skip
    expected = run(model, inputs)
    model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(model, inputs), expected)
    inputs["timestep"] = inputs["timestep"] - 1
    assert torch.isfinite(run(model, inputs)).all()


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_and_checkpointing(device):
    model, inputs = wan().to(device), on(device, wan_inputs())
    sd.enable(model, (1, 2, 2), tile=TILE)
    model(**inputs).sample.square().mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert expected["blocks.0.attn1.to_q.weight"].abs().max() > 0
    model.zero_grad()
    model.enable_gradient_checkpointing()
    model.train()
    model(**inputs).sample.square().mean().backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected[name])


def wan_pipeline(**parts):
    vae = diffusers.AutoencoderKLWan(base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
                                     latents_mean=[0.0] * 4, latents_std=[1.0] * 4)  # fmt: skip
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe = diffusers.WanPipeline(tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, **({"transformer": wan()} | parts))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, steps=2, **options):
    generator = torch.Generator().manual_seed(1)
    words = {name: torch.randn(1, 8, 16, generator=generator) for name in ("prompt_embeds", "negative_prompt_embeds")}
    words = on(pipe._execution_device, words)
    size = {"height": 64, "width": 96, "num_frames": 17, "num_inference_steps": steps}
    return pipe(**words, **size, guidance_scale=5.0, generator=generator, **({"output_type": "latent"} | options)).frames


@pytest.mark.parametrize("device", DEVICES)
def test_wan_pipeline(device):
    pipe = wan_pipeline().to(device)
    dense, video = generate(pipe), generate(pipe, output_type="pt")
    sd.enable(pipe, ALL, tile=TILE)
    torch.testing.assert_close(generate(pipe), dense, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(generate(pipe, output_type="pt"), video, rtol=1e-3, atol=1e-4)
    controller = sd.enable(pipe, (1, 1, 1), tile=TILE, dense_steps=1)
    sparse = generate(pipe)
    assert sparse.device.type == device and controller.step == 1 and (sparse - dense).abs().max() > 1e-4
    assert torch.equal(generate(pipe), sparse)  # a second run counts from 0 again
    sd.disable(pipe)
    assert torch.equal(generate(pipe), dense)


def test_wan_pipeline_with_two_experts_shares_its_steps():
    pipe = wan_pipeline(transformer_2=wan(), boundary_ratio=0.9)
    controller = sd.enable(pipe, (1, 1, 1), tile=TILE, dense_steps=1)
    assert len(controller.transformers) == 2
    generate(pipe, steps=4)
    assert controller.step == 3


def test_unknown_models_are_named():
    with pytest.raises(ValueError, match="found Linear, expected one of WanTransformer3DModel, HunyuanVideo"):
        sd.enable(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="neither a pipeline nor a transformer"):
        sd.enable("pipe")
    assert "FluxTransformer2DModel" in sd.known_models()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"window": (0, 1, 1)}, "positive"),
        ({"window": [(1, 1, 1)] * 3}, "3 windows"),
        ({"dense_layers": (7,)}, "layers 0 to 1"),
        ({"dense_steps": -1}, "dense_steps"),
    ],
)
def test_bad_options_change_nothing(options, message):
    model = wan()
    with pytest.raises(ValueError, match=message):
        sd.enable(model, **options)
    assert type(model.blocks[0].attn1.processor).__name__ == "WanAttnProcessor"


@pytest.mark.parametrize("device", DEVICES)
def test_hunyuan_video_pipeline(device):
    vae = diffusers.AutoencoderKLHunyuanVideo(
        in_channels=3, out_channels=3, latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, act_fn="silu", norm_num_groups=4,
        scaling_factor=0.476986, spatial_compression_ratio=8, temporal_compression_ratio=4, mid_block_add_attention=True,
    )  # fmt: skip
    pipe = diffusers.HunyuanVideoPipeline(
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, transformer=hunyuan_video(), vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    ).to(device)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    inputs = on(device, hunyuan_video_inputs())

    def sample():
        return pipe(
            prompt_embeds=inputs["encoder_hidden_states"], pooled_prompt_embeds=inputs["pooled_projections"],
            prompt_attention_mask=inputs["encoder_attention_mask"], height=96, width=128, num_frames=17, num_inference_steps=2,
            generator=torch.Generator().manual_seed(0), output_type="latent",
        ).frames  # fmt: skip

    dense = sample()
    sd.enable(pipe, ALL, tile=TILE)
    torch.testing.assert_close(sample(), dense, rtol=1e-3, atol=1e-4)
    controller = sd.enable(pipe, (1, 1, 1), tile=TILE, dense_steps=1)
    assert (sample() - dense).abs().max() > 1e-5 and controller.step == 1


@pytest.mark.parametrize("device", DEVICES)
def test_hunyuan_video15_pipeline_with_guidance(device):
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8), layers_per_block=1, spatial_compression_ratio=4, temporal_compression_ratio=4
    )
    pipe = diffusers.HunyuanVideo15Pipeline(
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, transformer=hunyuan_video15(), vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0), guider=diffusers.ClassifierFreeGuidance(guidance_scale=6.0),
    ).to(device)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pipe.vision_num_semantic_tokens = 5
    inputs = on(device, hunyuan_video15_inputs())
    # The two passes have different lengths of real text.
    words = {
        f"{sign}prompt_embeds{mask}{stream}": inputs[f"encoder_{'attention_mask' if mask else 'hidden_states'}{stream}"][item : item + 1]
        for item, sign in enumerate(("", "negative_"))
        for mask in ("", "_mask")
        for stream in ("", "_2")
    }

    def sample():
        generator = torch.Generator().manual_seed(0)
        return pipe(**words, height=24, width=32, num_frames=17, num_inference_steps=2, generator=generator, output_type="latent").frames

    dense = sample()
    sd.enable(pipe, ALL, tile=TILE)
    torch.testing.assert_close(sample(), dense, rtol=1e-3, atol=1e-4 if device == "cpu" else 1e-3)  # f32 on a GPU is tf32 in part
    controller = sd.enable(pipe, (1, 1, 1), tile=TILE, dense_steps=1)
    assert (sample() - dense).abs().max() > 1e-5 and controller.step == 1  # two passes are one step


@pytest.mark.parametrize("device", DEVICES)
def test_minimax_h3_denoising_loop(device):
    """diffusers' own loop, with a keyframe and audio whose timesteps are not the video's."""
    from diffusers.modular_pipelines.minimax_h3.before_denoise import MiniMaxH3SetTimestepsStep
    from diffusers.modular_pipelines.minimax_h3.denoise import MiniMaxH3DenoiseStep

    blocks = diffusers.modular_pipelines.SequentialPipelineBlocks.from_blocks_dict(
        {"set_timesteps": MiniMaxH3SetTimestepsStep(), "denoise": MiniMaxH3DenoiseStep()}
    )
    pipe = blocks.init_pipeline()
    schedulers = {name: diffusers.MiniMaxH3Scheduler(shift) for name, shift in (("scheduler", 12.0), ("audio_scheduler", 3.0))}
    pipe.update_components(transformer=minimax_h3(), **schedulers)
    pipe.to(device)
    inputs = minimax_h3_inputs()
    rows = {name: inputs[name] for name in ("video_indices", "audio_indices", "text_indices")}
    inputs = on(device, inputs)
    layout = {name: inputs[name] for name in (*rows, "token_tags", "position_ids")}

    def sample():
        return pipe(
            num_inference_steps=5, latents=inputs["hidden_states"][0].clone(), audio_latents=inputs["audio_hidden_states"][0].clone(),
            prompt_embeds=inputs["encoder_hidden_states"], num_condition_video_rows=48, denoiser_input_fields=layout, **rows,
            output="latents",
        )  # fmt: skip

    dense = sample()
    sd.enable(pipe.transformer, ALL, tile=TILE)
    torch.testing.assert_close(sample(), dense, rtol=1e-3, atol=1e-4 if device == "cpu" else 1e-3)  # f32 on a GPU is tf32 in part
    controller = sd.enable(pipe.transformer, (1, 1, 1), tile=TILE, dense_steps=1)
    assert (sample() - dense).abs().max() > 1e-5
    assert controller.step == len(pipe.scheduler.timesteps) - 1
    sd.enable(pipe.transformer, (1, 1, 1), tile=TILE, dense_steps=5)
    assert torch.equal(sample(), dense)


@pytest.mark.parametrize("device", DEVICES)
def test_flux_pipeline(device):
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,), latent_channels=1, norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    encoders = dict.fromkeys(["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"])
    pipe = diffusers.FluxPipeline(transformer=flux(), vae=vae, scheduler=scheduler, **encoders).to(device)
    pipe.set_progress_bar_config(disable=True)
    words, pooled = torch.randn(1, 7, 16, device=device), torch.randn(1, 8, device=device)

    def sample():
        generator = torch.Generator().manual_seed(0)
        return pipe(prompt_embeds=words, pooled_prompt_embeds=pooled, height=24, width=40, num_inference_steps=2, generator=generator,
                    output_type="latent").images  # fmt: skip

    dense = sample()
    controller = sd.enable(pipe, ALL, tile=(1, 4, 4))
    torch.testing.assert_close(sample(), dense, rtol=1e-3, atol=1e-4)
    assert controller.transformers[0].geometry.before == 7
    sd.enable(pipe, (1, 1, 1), tile=(1, 4, 4))
    assert (sample() - dense).abs().max() > 1e-5


def test_offloaded_weights():
    accelerate = pytest.importorskip("accelerate")
    model, inputs = wan(), wan_inputs()
    sd.enable(model, (1, 2, 2), tile=TILE)
    expected = run(model, inputs)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    torch.testing.assert_close(run(model, inputs), expected)
    sd.disable(model)
    sd.enable(model, (1, 2, 2), tile=TILE)
    torch.testing.assert_close(run(model, inputs), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_offloaded_pipeline():
    pipe = wan_pipeline()
    pipe.enable_model_cpu_offload()
    sd.enable(pipe, (1, 2, 2), tile=TILE)
    offloaded = generate(pipe)
    pipe.remove_all_hooks()
    torch.testing.assert_close(generate(pipe.to("cuda")), offloaded, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    model = wan(layers=1, attention_head_dim=128).to("cuda", torch.bfloat16)
    inputs = {name: x.to("cuda", x.dtype if name == "timestep" else torch.bfloat16) for name, x in wan_inputs().items()}
    dense = run(model, inputs)
    sd.enable(model, ALL)
    assert (run(model, inputs).float() - dense.float()).norm() / dense.float().norm() < 2e-2
    sd.enable(model, (1, 1, 1), tile=TILE, dense_steps=1)
    assert torch.equal(run(model, inputs), dense)
    compiled = torch.compile(model, fullgraph=True)
    inputs["timestep"] = inputs["timestep"] - 100
    assert (run(compiled, inputs).float() - run(model, inputs).float()).norm() / dense.float().norm() < 2e-2
