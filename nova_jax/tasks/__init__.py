"""What a model can be asked for: one file per capability, a validated request, and what it tells the network."""
