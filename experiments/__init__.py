"""One runnable file per experiment: `python -m experiments.NAME a.b=value`."""
