"""Runs the configs of JSON files, one after the other in one program: what the tests start as several processes."""

import json
import pathlib
import sys

from nova_jax import config as configs
from nova_jax import experiment

for path in sys.argv[1:]:
    experiment.run(configs.from_dict(json.loads(pathlib.Path(path).read_text()), ("nova_jax", "data_pipelines")))
