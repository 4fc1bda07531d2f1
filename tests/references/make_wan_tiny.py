"""Writes the small reference models that the import tests compare with: weights, inputs and outputs of six classes.

    pip install torch diffusers transformers safetensors        (versions used: wan_tiny/versions.json)
    python tests/references/make_wan_tiny.py tests/references/wan_tiny

Each model is one folder as its library saves it (config.json and safetensors) and one `NAME.npz` with inputs and the
outputs PyTorch computed in float32 on a CPU. Arrays keep PyTorch's layout (video is b c f h w). No parameter keeps its
initial value: norm gains, biases and tables are random too, so a tensor imported to the wrong place changes the output.
"""

import argparse
import json
import pathlib

import diffusers
import numpy as np
import torch
import transformers

SEED = 20
FRAMES = (1, 5, 9)
VAE = {"base_dim": 4, "z_dim": 4, "num_res_blocks": 1, "attn_scales": []}
DIT = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 10,
    "freq_dim": 16,
    "ffn_dim": 40,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}
T5 = {
    "vocab_size": 61,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 28,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 15,
}


class Writer:
    """Draws every random number from one stream and saves models beside their inputs and outputs."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.random = np.random.default_rng(SEED)
        folder.mkdir(parents=True, exist_ok=True)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.from_numpy(self.random.standard_normal(shape, dtype=np.float32))

    def fill(self, model: torch.nn.Module) -> torch.nn.Module:
        """Gives matrices unit gain, gains values around one, and everything else values around zero."""
        for name, parameter in model.named_parameters():
            is_gain = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
            is_matrix = parameter.ndim > 1 and not is_gain and "table" not in name
            scale = parameter[0].numel() ** -0.5 if is_matrix else 0.2
            parameter.data = scale * self.normal(*parameter.shape) + float(is_gain)
        return model.eval()

    def save(self, name: str, model: torch.nn.Module, arrays: dict[str, torch.Tensor]) -> None:
        model.save_pretrained(self.folder / name, safe_serialization=True)
        np.savez_compressed(self.folder / f"{name}.npz", **{key: value.numpy() for key, value in arrays.items()})


def write_vae(writer: Writer, name: str, **config) -> None:
    """Pixels are multiples of 1/8, which compress; decoded pixels are as the model returns them, clamped to [-1, 1]."""
    latents_mean = writer.random.standard_normal(VAE["z_dim"]).round(3).tolist()
    latents_std = (0.5 + writer.random.random(VAE["z_dim"])).round(3).tolist()
    model = diffusers.AutoencoderKLWan(latents_mean=latents_mean, latents_std=latents_std, **VAE, **config)
    writer.fill(model)
    arrays = {}
    for frames in FRAMES:
        pixels = (writer.normal(1, 3, frames, 16, 24) * 4).round().clamp(-8, 8) / 8
        posterior = model.encode(pixels).latent_dist
        latents = writer.normal(*posterior.mean.shape)
        arrays |= {
            f"pixels_{frames}": pixels,
            f"mean_{frames}": posterior.mean,
            f"logvar_{frames}": posterior.logvar,
            f"latents_{frames}": latents,
            f"decoded_{frames}": model.decode(latents).sample,
        }
    writer.save(name, model, arrays)


def write_denoiser(writer: Writer, name: str, channels: int, time_per_token: bool) -> None:
    """Times are on the public 0..1000 scale; with one time per token, the video's first frame is clean (time 0)."""
    model = diffusers.WanTransformer3DModel(in_channels=channels, out_channels=channels, **DIT)
    writer.fill(model)
    arrays = {}
    for case, (batch, frames, height, width, length) in {"image": (2, 1, 8, 6, 5), "video": (1, 3, 4, 8, 7)}.items():
        x, text = writer.normal(batch, channels, frames, height, width), writer.normal(batch, length, DIT["text_dim"])
        timestep = torch.tensor([731.0, 12.0])[:batch]
        if time_per_token:
            tokens_per_frame = height * width // 4
            timestep = torch.full((batch, frames * tokens_per_frame), 700.0)
            if frames > 1:
                timestep[:, :tokens_per_frame] = 0.0
        out = model(hidden_states=x, timestep=timestep, encoder_hidden_states=text, return_dict=False)[0]
        arrays |= {f"{case}_x": x, f"{case}_timestep": timestep, f"{case}_text": text, f"{case}_out": out}
    writer.save(name, model, arrays)


def write_text_encoder(writer: Writer, name: str, model: torch.nn.Module) -> None:
    """Two sequences of 11 ids; the second has 5 padding positions at its end."""
    writer.fill(model)
    ids = torch.from_numpy(writer.random.integers(2, T5["vocab_size"], (2, 11)))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    writer.save(name, model, {"ids": ids, "mask": mask, "states": states})


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    writer = Writer(parser.parse_args().folder)
    write_vae(writer, "vae_wan21", dim_mult=[1, 2, 2, 2], temperal_downsample=[False, True, True])
    write_vae(
        writer,
        "vae_wan22",
        dim_mult=[1, 2, 2],
        temperal_downsample=[False, True],
        is_residual=True,
        decoder_base_dim=6,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=8,
        scale_factor_temporal=2,
    )
    write_denoiser(writer, "dit_wan21", channels=4, time_per_token=False)
    write_denoiser(writer, "dit_wan22_ti2v", channels=6, time_per_token=True)
    write_text_encoder(writer, "umt5", transformers.UMT5EncoderModel(transformers.UMT5Config(**T5)))
    t5_v1_1 = transformers.T5Config(feed_forward_proj="gated-gelu", tie_word_embeddings=False, **T5)
    write_text_encoder(writer, "t5_v1_1", transformers.T5EncoderModel(t5_v1_1))
    versions = {library.__name__: library.__version__ for library in (torch, diffusers, transformers, np)}
    (writer.folder / "versions.json").write_text(json.dumps({"seed": SEED, **versions}, indent=1) + "\n")


if __name__ == "__main__":
    main()
