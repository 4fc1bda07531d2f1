"""The shape of the repository: who may import whom, how long a file may be, what is in the wheel."""

import ast
import functools
import importlib
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("nova_jax", "data_pipelines", "experiments")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 500
LONGER = {"nova_jax/weights/wan_dit.py", "nova_jax/weights/wan_vae.py", "nova_jax/weights/t5.py"}  # key tables

# Part of nova_jax -> the parts it may import, beside itself. Parts that are not listed stand on top and may import all.
MODELS = {"types", "conditions", "config", "git_lfs", "parallel", "layers"}
SAMPLING = {"types", "conditions", "diffusion"}
MAY_IMPORT = {
    "types": set(),
    "conditions": {"types"},
    "config": set(),
    "git_lfs": set(),
    "atomic": set(),
    "launch": set(),
    "parallel": {"types", "config"},
    "layers": {"types", "config", "parallel"},
    "models": MODELS,
    "weights": MODELS | {"models", "atomic"},
    "diffusion": {"types", "conditions"},
    "sampling": SAMPLING,
    "tasks": SAMPLING | {"sampling", "media"},
    "media": {"git_lfs"},
    "distillation": SAMPLING | {"sampling", "training"},
    "evaluation": SAMPLING
    | {"sampling", "tasks", "distillation", "generation", "config", "environment", "models", "runs", "atomic"}
    | {"parallel"},
    "generation": SAMPLING
    | {"sampling", "tasks", "distillation", "models", "weights", "runs", "parallel"}
    | {"atomic", "compilation_cache", "config", "environment"},
    "training": {"types", "config", "parallel", "atomic"},
}
IMPORTS_LATE = {  # `nova --help` answers within a second; the benchmark times imports
    "nova_jax/cli/commands.py",
    "nova_jax/cli/compile.py",
    "nova_jax/cli/options.py",
    "experiments/benchmarks/first_image.py",
}
CORE = {"jax", "flax", "optax", "orbax", "numpy", "jaxtyping", "safetensors", "rich", "PIL", *PACKAGES}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imports(tree):
    """The dotted names that a module imports; `from a import b` counts as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_imports_point_one_way():
    for path in SOURCES:
        package, part = path.relative_to(ROOT).with_suffix("").parts[:2]
        seen = [name.split(".") for name in imports(parse(path))]
        packages = {name[0] for name in seen} & set(PACKAGES)
        allowed = {"nova_jax": {"nova_jax"}, "data_pipelines": {"nova_jax", "data_pipelines"}}.get(package, packages)
        assert packages <= allowed, name_of(path)
        if package == "nova_jax" and part in MAY_IMPORT:
            parts = {name[1] for name in seen if name[0] == "nova_jax" and len(name) > 1}
            assert parts <= MAY_IMPORT[part] | {part}, (
                f"{name_of(path)} may not import {parts - MAY_IMPORT[part] - {part}}"
            )


def test_data_of_any_kind_knows_nothing_of_the_scenes_world():
    generic = [path for path in SOURCES if re.match(r"data_pipelines/(?!scenes/)", name_of(path))]
    users = {name_of(p) for p in generic if any(name.startswith("data_pipelines.scenes") for name in imports(parse(p)))}
    assert not users


def test_flax_is_fenced_into_layers_and_models():
    users = {name_of(p) for p in SOURCES if any(name.split(".")[0] == "flax" for name in imports(parse(p)))}
    inside = re.compile(r"nova_jax/(layers|models)/|nova_jax/runs/build.py")
    assert all(inside.match(user) for user in users if user.startswith("nova_jax/")), users


def test_every_module_says_what_it_is_and_is_not_too_long():
    for path in SOURCES:
        tree = parse(path)
        assert ast.get_docstring(tree) or not tree.body, f"{name_of(path)} has no docstring"
        length = len(path.read_text(encoding="utf-8").splitlines())
        assert name_of(path) in LONGER or length <= MAX_LINES, f"{name_of(path)} has {length} lines"
        assert path.stem not in {"utils", "util", "helpers", "common", "misc"}, (
            f"name {name_of(path)} after its content"
        )


def test_only_optional_packages_are_imported_inside_functions():
    for path in [p for p in SOURCES if name_of(p) not in IMPORTS_LATE]:
        functions = [
            node for node in ast.walk(parse(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        late = {name.split(".")[0] for function in functions for name in imports(function)}
        assert not late & CORE, name_of(path)
        assert not any(name.startswith("__future__") for name in imports(parse(path))), name_of(path)


def test_no_file_names_a_place_on_one_machine():
    places = re.compile("|".join(f"/{place}/" for place in ("work", "tmp", "home", "root", "Users")) + r"|\.\./shared")
    folders = (*PACKAGES, "tests", "docs", "notebooks")
    files = [p for folder in folders for p in (ROOT / folder).rglob("*")] + list(ROOT.iterdir())
    texts = [
        p
        for p in files
        if p.suffix in {".py", ".md", ".ipynb", ".toml", ".svg", ".yaml", ".sh"} or p.name == "Makefile"
    ]
    found = {name_of(p): hits for p in texts if (hits := places.findall(p.read_text(encoding="utf-8")))}
    found.pop("tests/test_structure.py", None)
    assert not found


def test_exported_names_exist():
    for path in sorted((ROOT / "nova_jax").rglob("__init__.py")):
        module = importlib.import_module(".".join(path.relative_to(ROOT).parent.parts))
        exported = getattr(module, "__all__", [])
        assert all(hasattr(module, name) for name in exported), name_of(path)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("nova_jax", {"grain", "orbax", "tyro", "jax"}),
        ("nova_jax.sampling", {"grain", "orbax", "tyro", "flax", "optax"}),
        ("nova_jax.models", {"grain", "orbax", "tyro"}),
        ("nova_jax.training", {"grain", "orbax", "tyro"}),
        ("nova_jax.cli", {"jax", "flax", "orbax", "grain"}),
    ],
)
def test_importing_a_part_loads_nothing_it_does_not_need(module, heavy):
    program = f"import sys, {module}; print(*(name for name in sys.modules if '.' not in name))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert not heavy & set(loaded.split())


def test_the_wheel_holds_nova_jax_and_nothing_else(tmp_path):
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in files if ".dist-info/" not in name} == {"nova_jax"}
    modules = {name_of(path) for path in SOURCES if name_of(path).startswith("nova_jax/")}
    assert modules <= set(files)
