"""From a config file and command-line overrides to one typed, checked `Config`.

A config file has a function `get_config()` that returns an `ml_collections.ConfigDict`. Its
sections are the dataclasses below; each belongs to the package that reads it.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict

from vla_jax import schema
from vla_jax.data.config import DataConfig
from vla_jax.evaluation.base import EvaluationConfig
from vla_jax.models.presets import ModelConfig
from vla_jax.sharding.mesh import MeshConfig
from vla_jax.training.config import TrainConfig
from vla_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that defines a run."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)

    def __post_init__(self):
        if self.model.state_size != self.data.state.vector_size:
            raise ValueError(
                f"model.state_size is {self.model.state_size}, and data.state gives "
                f"{self.data.state.vector_size} numbers in a vector: they must be equal"
            )

    @property
    def samples_per_step(self) -> int:
        """Samples that an update uses: one a row, or several in packed rows."""
        return self.train.batch_size * self.data.examples_per_row


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ConfigDict:
    """Runs the config file and applies overrides.

    Args:
      path: a Python file with `get_config()`. `file.py:text` calls `get_config("text")`.
      overrides: "a.b=c", in order. The text after "=" is read as the type that the section's
        dataclass declares; keys that the file leaves at their default can be overridden too.

    Returns:
      Every key of `Config`, defaults filled in; locked.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a config file, or an override with an unknown key or a value of wrong type.
    """
    values = schema.with_defaults(Config, _run_file(str(path)).to_dict())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r}: expected key=value, e.g. {key}=1")
        schema.set_from_text(Config, values, key, text)
    return ConfigDict(values).lock()


def parse(config: ConfigDict) -> Config:
    """Raises ValueError naming the key, what was expected and what was found."""
    return schema.from_dict(Config, config.to_dict())


def to_json(config: Config) -> str:
    """What a run writes to `config.json`."""
    return json.dumps(schema.to_plain(config), indent=2) + "\n"


def from_json(text: str, *, where: str) -> Config:
    """Reads `to_json`'s output back.

    Args:
      where: the file, for messages.

    Raises:
      ValueError: not JSON, or not a `Config`.
    """
    try:
        return schema.from_dict(Config, json.loads(text))
    except ValueError as e:
        raise ValueError(f"{where}: not a config of this program: {e}") from e


def run_main(
    main: Callable[..., object],
    *,
    optional: Mapping[str, tuple[str | bool | int, str]] | None = None,
    **required: str,
) -> NoReturn:
    """The command line of a program: `--config=FILE --config.a.b=c` and a few flags of its own.

    Calls `main(config, name=value, ...)` and exits. A mistake in the command line or in the config,
    a missing file and one that may not be written end the program with one line on stderr and exit
    code 2.

    Args:
      main: takes a `Config` and the flags as keywords.
      optional: flag name -> (default, help); the flag's type is that of the default.
      required: flag name -> help; each is a string that must be given.
    """
    try:
        argv, overrides = split_overrides(sys.argv)
    except ValueError as e:
        sys.exit(_refuse(e))
    flags.DEFINE_string(
        "config", None, "Python file with get_config(); override keys with --config.a.b=c"
    )
    for name, text in required.items():
        flags.DEFINE_string(name, None, text)
    define = {str: flags.DEFINE_string, bool: flags.DEFINE_bool, int: flags.DEFINE_integer}
    for name, (default, text) in (optional or {}).items():
        define[type(default)](name, default, text)
    names = (*required, *(optional or ()))
    flags.mark_flags_as_required(["config", *required])

    def start(rest: list[str]) -> int | None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save
        if rest[1:]:
            return _refuse(ValueError(f"unexpected argument {rest[1]!r}; flags start with --"))
        try:
            config = parse(load_config(flags.FLAGS.config, overrides))
        except (ValueError, FileNotFoundError) as e:
            return _refuse(e)
        try:
            main(config, **{name: flags.FLAGS[name].value for name in names})
        except (FileNotFoundError, PermissionError) as e:
            return _refuse(e)
        return None

    app.run(start, argv=argv)
    raise AssertionError("app.run exits")


def _refuse(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes `--config.a.b=c` and `--config.a.b c` out of `argv`; returns (the rest, ["a.b=c"]).

    Raises ValueError for one without a value.
    """
    rest, overrides = [], []
    words = iter(argv)
    for word in words:
        name = word.removeprefix("-").removeprefix("-")
        if name == word or not name.startswith("config."):
            rest.append(word)
            continue
        override = name.removeprefix("config.")
        if "=" not in override:
            value = next(words, None)
            if value is None or value.startswith("--"):
                raise ValueError(f"{word} needs a value: {word}=...")
            override = f"{override}={value}"
        overrides.append(override)
    return rest, overrides


def _run_file(path: str) -> ConfigDict:
    """Calls `get_config` of the file."""
    file, colon, argument = path.partition(":")
    if not Path(file).is_file():
        near = sorted(str(p) for p in Path(file).parent.glob("*.py"))
        close = difflib.get_close_matches(file, near, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise FileNotFoundError(f"no config file {file}{hint}")
    module_spec = importlib.util.spec_from_file_location("config_file", file)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"{file} is not a Python file; a config file is one, with get_config()")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"{file} has no function get_config()")
    config = module.get_config(*([argument] if colon else []))
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"{file}: get_config() returned {type(config).__name__}, not ml_collections.ConfigDict"
        )
    return config
