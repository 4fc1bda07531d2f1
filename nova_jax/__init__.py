"""nova_jax: latent diffusion transformers for images and video, built for scaling research."""

__version__ = "0.1.0"
