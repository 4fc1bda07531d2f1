"""Data: the scenes world, sources, latent cache and the Grain loader; the library never imports it."""
