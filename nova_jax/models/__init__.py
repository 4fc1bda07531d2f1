"""Networks: the diffusion transformer, the autoencoder, text encoders, and their sizes by name."""
