"""Every program of every preset and experiment holds flash attention when it is made for an H200 in bfloat16."""

import dataclasses

import jax
import jax.core
import jax.numpy as jnp
import pytest

from experiments import canvas, canvas_64, cifar10, emoji, emoji_canvas, quickstart, reel, scenes, students_64
from nova_jax import distillation, sampling
from nova_jax.diffusion import FlowMatching, conditioning
from nova_jax.generation import program
from nova_jax.layers import attention
from nova_jax.models import presets
from nova_jax.models.text_to_latent import TextToLatent
from nova_jax.runs import build
from nova_jax.tasks import conditions
from nova_jax.training import optimizer
from nova_jax.types import Batch, Conditioning

IMAGES = {module.__name__.split(".")[-1]: module.CONFIG for module in (quickstart, scenes, emoji, cifar10, students_64)}
EDITING = {module.__name__.split(".")[-1]: module.CONFIG for module in (canvas, canvas_64, emoji_canvas)}
FRAMES = 7
ROWS = 2


def zeros(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((ROWS, *shape), dtype)


def in_half(model):
    """The network computing in bfloat16."""
    if not isinstance(model, TextToLatent):
        return dataclasses.replace(model, dtype=jnp.bfloat16)
    return dataclasses.replace(model, dit=dataclasses.replace(model.dit, dtype=jnp.bfloat16))


def text_of(model):
    if isinstance(model, TextToLatent):
        ids, mask = model.text_encoder.tokenize([""])
        return Conditioning(text_ids=zeros(*ids.shape[1:], dtype=jnp.int32), text_mask=zeros(mask.shape[1], dtype=bool))
    states = zeros(27, model.text_dim)
    return Conditioning(text=states, text_mask=zeros(27, dtype=bool) if model.masks_text else None)


def batches_of(name):
    """The network of a preset or an experiment, and a batch of each kind that it trains on."""
    if name in presets.DIT:
        model = in_half(presets.dit(name))
        return model, [Batch(zeros(3 if name.startswith("wan") else 1, 8, 8, model.in_channels), text_of(model))]
    if name == "reel":
        model = in_half(reel.CONFIG.model)
        x0 = zeros(FRAMES, 3 * 4, 2 * 6, model.dit.in_channels)
        return model, [Batch(x0, text_of(model)), Batch(x0, text_of(model)._replace(frames=zeros(1, *x0.shape[2:])))]
    model = in_half((IMAGES | EDITING)[name].model)
    x0, text = zeros(1, 8, 8, model.dit.in_channels), text_of(model)
    kinds = [text]
    if name in EDITING:
        frame = x0.shape[2:]
        text = text._replace(task=zeros(dtype=jnp.int32))
        colors = {"palette": zeros(10, 3), "palette_mask": zeros(10, dtype=bool), "frames": zeros(1, *frame)}
        edits = {"aligned": zeros(1, 8, 8, model.dit.aligned_channels)}
        varied = {"frames": zeros(conditions.MAX_REFERENCES, *frame)}
        kinds = [text, text._replace(**edits), text._replace(**colors), text._replace(**varied)]
    return model, [Batch(x0, kind) for kind in kinds]


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def check_flash(traced, kind):
    """Self- and cross-attention are kernels without a bias, and nothing holds scores (b, k, n, l)."""
    found = list(equations(traced.jaxpr.jaxpr))
    kernels = [e for e in found if e.primitive.name == f"dot_product_attention_{kind}_wrapper"]
    arrays = [[v.aval.shape for v in e.invars[:2]] for e in kernels]
    sizes = {(b, heads, n, l) for (b, n, heads, _), (_, l, *_) in arrays}
    assert len(sizes) == 2
    assert not [e for e in kernels if e.invars[3].aval.size]
    sizes |= {(b, heads, n, real) for b, heads, n, l in sizes for real in range(l - attention.KEY_MULTIPLE + 1, l)}
    assert not sizes & {v.aval.shape for e in found for v in e.outvars}


@pytest.fixture
def on_h200(monkeypatch):
    """Programs are traced for an H200; cuDNN attention asks for one, and for nothing else."""
    kernels = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{kernels}.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(f"{kernels}.check_compute_capability", lambda capability: True)
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    monkeypatch.setattr("nova_jax.parallel.mesh.current_device", lambda: device)


def one_of(batch):
    return jax.tree.map(lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype), batch)


def trace_training(made, batch):
    return made.train_step.trace(jax.eval_shape(made.make_state, *made.arguments), batch)


def trace_sampling(model, batch):
    shapes = (batch.x0, jnp.zeros(ROWS), batch.cond)
    params = jax.eval_shape(model.init, jax.random.key(0), *shapes)["params"]
    cond = batch.cond
    if isinstance(model, TextToLatent):
        cond = jax.eval_shape(lambda p, c: model.apply({"params": p}, c, method="encode_text"), params, cond)
    null = jax.eval_shape(conditioning.null, cond)
    draw = program.make_draw(model, FlowMatching(), sampling.Euler(), "guided", None, batch.x0.shape[1:])
    seeds = jax.ShapeDtypeStruct((ROWS,), jnp.uint32)
    return draw.trace(params, cond, null, seeds, jnp.linspace(1.0, 0.0, 5), jnp.array(4.0))


@pytest.mark.parametrize(
    "name", [*presets.DIT, *IMAGES, *(pytest.param(name, marks=pytest.mark.long) for name in (*EDITING, "reel"))]
)
def test_training_and_sampling_attend_by_flash_kernels(on_h200, name):
    model, batches = batches_of(name)
    for batch in batches:
        made = build.plain(model, FlowMatching(num_bins=0), optimizer.AdamW(peak=1e-3), one_of(batch), seed=0)
        check_flash(trace_training(made, batch), "bwd")
        check_flash(trace_sampling(model, batch), "fwd")


def test_a_student_that_is_differentiated_forwards_has_flash_kernels_too(on_h200):
    model = in_half(presets.dit("nano", has_second_time=True))
    batch = Batch(zeros(1, 8, 8, 16), text_of(model))
    method, settings = distillation.MeanFlow(source="data"), {"seed": 0, "ema_decay": 0.9}
    made = build.distilled(model, method, optimizer.AdamW(peak=1e-3), one_of(batch), None, **settings)
    program = trace_training(made, batch).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmaxBackward" in program


def test_a_student_that_also_takes_plain_gradients_has_attention_that_passes_both(on_h200):
    model = in_half(presets.dit("nano", has_second_time=True))
    assert build.with_forward_mode(model, distillation.Joint()).attention_implementation == "tiled"
    assert build.with_forward_mode(model, distillation.Shortcut()) is model
