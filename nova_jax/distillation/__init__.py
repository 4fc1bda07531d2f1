"""Few-step students of a trained teacher: what they learn from."""
