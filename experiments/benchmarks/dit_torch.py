"""DiT-B/2 against the same network in PyTorch, compiled by torch.compile: forward pass and training step, in turn.

    pip install torch==2.13.0
    python -m experiments.benchmarks.dit_torch experiments/results/dit_b2_torch_cpu.json

Both have the same parameters and inputs, and their outputs are compared first. A training step is flow matching's loss,
its gradient, clipping, AdamW and EMA. They run in one process, a few calls of each in turn, so that whatever else the
machine does falls on both; a ratio is the median over pairs of turns of torch's time over JAX's.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nova_jax import environment
from nova_jax.diffusion import FlowMatching
from nova_jax.layers import embeddings, rope
from nova_jax.models import presets
from nova_jax.runs import build
from nova_jax.training import optimizer, step
from nova_jax.types import Batch, Conditioning

LATENTS, TEXT = (1, 32, 32, 16), (32, 256)  # f h w c: 256 tokens; states of a caption
BATCH_SIZE = 8
CALLS, TURNS = 2, 12
RATE, B2, CLIP, EMA = 1e-4, 0.999, 1.0, 0.999


class Attention(nn.Module):
    """Queries and keys normalised by head, and rotated in self-attention."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.query_norm, self.key_norm = (nn.RMSNorm(width // heads, eps) for _ in range(2))
        self.heads = heads

    def forward(self, x: Any, y: Any, rotation: Any = None) -> Any:
        """Attends from x to y."""
        q, k, v = (a.unflatten(-1, (self.heads, -1)) for a in (self.query(x), self.key(y), self.value(y)))
        q, k = self.query_norm(q), self.key_norm(k)
        if rotation is not None:
            q, k = _rotate(q, *rotation), _rotate(k, *rotation)
        out = F.scaled_dot_product_attention(*(a.transpose(1, 2) for a in (q, k, v)))
        return self.out(out.transpose(1, 2).flatten(-2))


def _rotate(x: Any, cos: Any, sin: Any) -> Any:
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class Block(nn.Module):
    """The block of `models.dit`."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.self_attention, self.cross_attention = (Attention(width, heads, eps) for _ in range(2))
        self.cross_norm = nn.LayerNorm(width, eps)
        self.mlp = nn.ModuleDict({"up": nn.Linear(width, 4 * width), "down": nn.Linear(4 * width, width)})
        self.modulation = nn.Parameter(torch.zeros(6, width))
        self.eps = eps

    def forward(self, x: Any, shared: Any, text: Any, rotation: Any) -> Any:
        """One layer."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (shared + self.modulation)[:, :, None].unbind(1)
        h = self._norm(x) * (1 + scale_1) + shift_1
        x = x + gate_1 * self.self_attention(h, h, rotation)
        x = x + self.cross_attention(self.cross_norm(x), text)
        h = self._norm(x) * (1 + scale_2) + shift_2
        return x + gate_2 * self.mlp["down"](F.gelu(self.mlp["up"](h), approximate="tanh"))

    def _norm(self, x: Any) -> Any:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)


def _embedder(inputs: int, width: int) -> nn.ModuleDict:
    return nn.ModuleDict({"in": nn.Linear(inputs, width), "out": nn.Linear(width, width)})


class DiT(nn.Module):
    """`models.dit.DiT` with cross-attention and nothing optional, on patches."""

    def __init__(self, jax_dit: Any, patch_features: int) -> None:
        super().__init__()
        width, heads, eps = jax_dit.width, jax_dit.num_heads, jax_dit.eps
        self.patch_embed = nn.Linear(patch_features, width)
        self.text_embed = _embedder(jax_dit.text_dim, width)
        self.time_embed = _embedder(jax_dit.freq_dim, width)
        self.time_modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, heads, eps) for _ in range(jax_dit.depth))
        self.head_modulation = nn.Parameter(torch.zeros(2, width))
        self.head = nn.Linear(width, patch_features)
        self.eps = eps

    def forward(self, patches: Any, time_features: Any, text: Any, rotation: Any) -> Any:
        """Predicted patches."""
        x = self.patch_embed(patches)
        text = self.text_embed["out"](F.gelu(self.text_embed["in"](text), approximate="tanh"))
        e = self.time_embed["out"](F.silu(self.time_embed["in"](time_features)))
        shared = self.time_modulation(F.silu(e)).unflatten(-1, (6, -1))
        for block in self.blocks:
            x = block(x, shared, text, rotation)
        shift, scale = (e[:, None] + self.head_modulation)[:, :, None].unbind(1)
        return self.head(F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift)


def copy_parameters(params: Any, model: DiT) -> None:
    """The parameters of the JAX network into the torch one, whose modules have the same names."""
    with torch.no_grad():
        for name, target in model.named_parameters():
            *parts, leaf = name.split(".")
            layers = [int(part) for part in parts if part.isdecimal()]
            path = [part for part in parts if not part.isdecimal()]
            value: Any = params
            for part in path:
                value = value[part]
            kind = {"weight": "kernel" if target.ndim == 2 else "scale"}.get(leaf, leaf)
            array = np.asarray(value[kind])
            array = array[layers[0]] if layers else array
            target.copy_(torch.from_numpy(np.array(array.T if kind == "kernel" else array)))


def time_features(t: Any, dim: int, scale: float) -> Any:
    """`embeddings.timestep_features` of scale * t."""
    frequencies = torch.exp(torch.arange(dim // 2) * (-np.log(10_000.0) / (dim // 2)))
    angle = scale * t[:, None] * frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def in_turn(jax_call: Callable[[], Any], torch_call: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of a call of each, and torch's time over JAX's."""
    calls, seconds = {"jax": jax_call, "torch": torch_call}, {"jax": [], "torch": []}
    for turn in range(TURNS + 1):
        for name in calls if turn % 2 else reversed(calls):
            began = time.perf_counter()
            for _ in range(CALLS):
                calls[name]()
            if turn:  # the first one warms up
                seconds[name].append((time.perf_counter() - began) / CALLS)
    ratios = np.array(seconds["torch"]) / np.array(seconds["jax"])
    return {
        "seconds": {name: float(np.median(values)) for name, values in seconds.items()},
        "ratio": float(np.median(ratios)),
        "ratio_quartiles": [float(q) for q in np.percentile(ratios, [25, 75])],
    }


class Twins(NamedTuple):
    """The same network twice, with the same inputs."""

    dit: Any
    params: Any
    batch: Batch
    t: jax.Array
    model: DiT
    compiled: Any
    patches: Any  # of batch.x0, in torch, as are the others
    text: Any
    rotation: tuple[Any, Any]

    def predict(self, x: Any, t: Any) -> Any:
        """What torch predicts of noisy patches."""
        features = time_features(t, self.dit.freq_dim, self.dit.time_scale)
        return self.compiled(x, features, self.text, self.rotation)


def make_twins() -> Twins:
    """DiT-B/2 with random parameters, none of them zero, so that all take part in the comparison."""
    dit = presets.dit("B/2", text_dim=TEXT[1])
    x_key, text_key, t_key, key = jax.random.split(jax.random.key(0), 4)
    text = jax.random.normal(text_key, (BATCH_SIZE, *TEXT))
    batch = Batch(jax.random.normal(x_key, (BATCH_SIZE, *LATENTS)), Conditioning(text=text))
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda key: build.init_params(dit, batch, key), key))
    random = [0.05 * jax.random.normal(jax.random.fold_in(key, i), leaf.shape) for i, leaf in enumerate(leaves)]
    params = jax.tree.unflatten(tree, random)
    patches = embeddings.patchify(batch.x0, dit.patch_size)
    frames, rows, columns, features = patches.shape[1:]
    model = DiT(dit, features)
    copy_parameters(params, model)
    rotation = rope.grid_rotation(np.arange(frames), rows, columns, dit.width // dit.num_heads)
    return Twins(
        dit=dit,
        params=params,
        batch=batch,
        t=jax.random.uniform(t_key, (BATCH_SIZE,)),
        model=model,
        compiled=torch.compile(model),
        patches=to_torch(patches).reshape(BATCH_SIZE, -1, features),
        text=to_torch(text),
        rotation=(to_torch(rotation.cos)[None, :, None], to_torch(rotation.sin)[None, :, None]),
    )


def to_torch(array: Any) -> Any:
    """A copy."""
    return torch.from_numpy(np.array(array))


def compare_forward(twins: Twins) -> dict[str, Any]:
    """Both outputs, which must be equal, and both times."""
    apply = jax.jit(lambda params, x, t, cond: twins.dit.apply({"params": params}, x, t, cond))
    arguments = (twins.params, twins.batch.x0, twins.t, twins.batch.cond)
    t = to_torch(twins.t)

    def predict() -> Any:
        with torch.no_grad():
            return twins.predict(twins.patches, t)

    ours = np.asarray(embeddings.patchify(apply(*arguments), twins.dit.patch_size)).reshape(twins.patches.shape)
    difference = float(np.abs(ours - predict().numpy()).max() / np.abs(ours).max())
    assert difference < 1e-4, difference
    found = in_turn(lambda: apply(*arguments).block_until_ready(), predict)
    return found | {"largest_relative_difference": difference}


def compare_training(twins: Twins) -> dict[str, Any]:
    """Both times of a training step."""
    adamw = optimizer.AdamW(peak=RATE, warmup=1, b2=B2, clip_norm=CLIP)
    state = step.start(twins.params, adamw)
    train_step = step.make_step(FlowMatching(num_bins=0), build.as_network(twins.dit), adamw, ema_decay=EMA)
    parameters = list(twins.model.parameters())
    averaged = [p.detach().clone() for p in parameters]
    adam = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, B2), weight_decay=0.0, fused=True)

    def jax_step() -> None:
        nonlocal state
        state, metrics = train_step(state, twins.batch)
        float(metrics["loss"])

    def torch_step() -> None:
        noise, t = torch.randn_like(twins.patches), torch.rand(BATCH_SIZE)
        predicted = twins.predict(torch.lerp(twins.patches, noise, t[:, None, None]), t)
        loss = F.mse_loss(predicted, noise - twins.patches)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        adam.step()
        adam.zero_grad()
        torch._foreach_lerp_(averaged, [p.detach() for p in parameters], 1 - EMA)
        loss.item()

    return in_turn(jax_step, torch_step)


def main() -> None:
    """Measures both, and writes the record to the path of the command line."""
    twins = make_twins()
    forward, training = compare_forward(twins), compare_training(twins)
    record = {
        "forward_ratio": forward["ratio"],
        "step_ratio": training["ratio"],
        "forward": forward,
        "step": training,
        "batch_size": BATCH_SIZE,
        "dtype": "float32",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "environment": environment.describe(),
        "command": " ".join(["python -m experiments.benchmarks.dit_torch", *sys.argv[1:]]),
    }
    print(json.dumps(record, indent=1))
    if sys.argv[1:]:
        pathlib.Path(sys.argv[1]).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
