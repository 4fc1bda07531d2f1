"""From a prompt or a request to pixels and files.

prompts     prompts -> token ids -> states of the run's text encoder, and what stands for no prompt
settings    solver, steps, time grid, guidance
program     the network as a guided denoiser, sampled from noise to latents in one jitted program
codec       latents -> pixels, and back
placement   the mesh that all of this runs on
compiled    its programs, compiled ahead of time and found again
batches     all of it for many prompts and seeds, in batches of one size
images      editing requests; what each task gives the network, and what becomes of its image
videos      video requests, shot by shot
files       names, PNG files with their metadata, grids

run = load.load_run("runs/quickstart")
pixels = batches.generate(run, ["a red circle left of a blue square"], [0])     # uint8 (b, f, h, w, 3)
"""

from nova_jax.generation import batches, files, images, placement, program, videos
from nova_jax.generation.batches import SEEDS, explain_nonfinite, generate, generate_latents
from nova_jax.generation.codec import decode, decode_stream, make_decode, to_latents, to_uint8
from nova_jax.generation.files import save_grid, save_pngs
from nova_jax.generation.placement import mesh_for, rows_per_call
from nova_jax.generation.prompts import check_prompts, encode
from nova_jax.generation.settings import SamplingSettings, check_settings, settings_for
from nova_jax.runs.load import CODEC_FOLDER, TrainedRun, load_run

__all__ = [
    "CODEC_FOLDER",
    "SEEDS",
    "SamplingSettings",
    "TrainedRun",
    "batches",
    "check_prompts",
    "check_settings",
    "decode",
    "decode_stream",
    "encode",
    "explain_nonfinite",
    "files",
    "generate",
    "generate_latents",
    "images",
    "load_run",
    "make_decode",
    "mesh_for",
    "placement",
    "program",
    "rows_per_call",
    "save_grid",
    "save_pngs",
    "settings_for",
    "to_latents",
    "to_uint8",
    "videos",
]
