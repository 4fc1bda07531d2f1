"""README and docs: every command parses as written, every name exists, and what is short runs."""

import ast
import importlib
import pathlib
import re
import shlex

import numpy as np
import pytest
import tyro

from nova_jax import config as configs
from nova_jax import experiment
from nova_jax.cli import commands
from tests import tiny_run

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`((?:python -m|nova) [^`]+)`")
PLACEHOLDER = re.compile(r"=[A-Z]+\b|\bPATH\b|,B,C")  # NAME, N, PATH: what a reader fills in


def command_lines(page):
    text = page.read_text(encoding="utf-8")
    shell = [body.replace("\\\n", " ") for kind, body in BLOCK.findall(text) if kind == "bash"]
    lines = [line for body in shell for line in body.splitlines()]
    lines += [" ".join(command.split()) for command in INLINE.findall(BLOCK.sub("", text))]
    return [line for line in lines if not PLACEHOLDER.search(line)]


def python_blocks(page):
    return [body for kind, body in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == "python"]


def test_every_experiment_that_a_page_names_exists_and_takes_its_overrides():
    checked = 0
    for page in PAGES:
        for line in command_lines(page):
            words = shlex.split(line, comments=True)
            if words[:2] != ["python", "-m"] or not words[2].startswith("experiments."):
                continue
            module = importlib.import_module(words[2])
            if isinstance(getattr(module, "CONFIG", None), experiment.TrainConfig):
                configs.override(module.CONFIG, [word for word in words[3:] if "=" in word])
                checked += 1
    assert checked > 10


def test_every_nova_command_of_a_page_parses():
    checked = 0
    for page in PAGES:
        for line in command_lines(page):
            words = shlex.split(line, comments=True)
            needs_run = words[1:2] in (["generate"], ["evaluate"], ["bench"]) and words[1:3] != ["bench", "compare"]
            is_name = (needs_run and "--run" not in words) or words in (["nova", "plan"], ["nova", "compile"])
            if words[:1] != ["nova"] or is_name:
                continue
            if words[1:3] == ["bench", "compare"]:
                tyro.cli(commands.Compare, args=words[3:])
            else:
                tyro.extras.subcommand_cli_from_dict(commands.COMMANDS, args=words[1:])
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_in_the_python_of_a_page_exists(page):
    for block in python_blocks(page):
        tree = ast.parse(block)
        modules = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                parent = importlib.import_module(node.module)
                for alias in node.names:
                    value = getattr(parent, alias.name, None)
                    value = importlib.import_module(f"{node.module}.{alias.name}") if value is None else value
                    modules[alias.asname or alias.name] = value
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node).split(".")[0] in modules:
                value = modules[ast.unparse(node).split(".")[0]]
                for name in ast.unparse(node).split(".")[1:]:
                    if not name.isidentifier():
                        break
                    value = getattr(value, name)


@pytest.mark.long
def test_the_readme_generates_as_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_run.make_config(tmp_path)
    experiment.run(configs.override(config, ["run_dir=runs/quickstart", "preview=none"]))
    (block,) = python_blocks(ROOT / "README.md")
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["pixels"].dtype == np.uint8
    assert len(list(pathlib.Path("samples").glob("*.png"))) == 1
    (line,) = [line for line in command_lines(ROOT / "README.md") if "--count 4" in line]
    commands.main(shlex.split(line)[1:])
    assert len(list(pathlib.Path("runs/quickstart/generated").glob("*.png"))) == 4
