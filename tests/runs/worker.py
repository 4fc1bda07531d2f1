"""Runs the configs of JSON files, then commands of `nova`, in one program: what tests start as several processes."""

import json
import pathlib
import shlex
import sys

from nova_jax import cli, experiment
from nova_jax import config as configs

for argument in sys.argv[1:]:
    if argument.endswith(".json"):
        saved = json.loads(pathlib.Path(argument).read_text())
        experiment.run(configs.from_dict(saved, ("nova_jax", "data_pipelines", "experiments")))
    else:
        cli.main(shlex.split(argument))
