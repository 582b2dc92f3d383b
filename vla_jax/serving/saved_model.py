"""The functions of `serving.stablehlo` as a TensorFlow SavedModel, parameters inside.

The only file of this part that imports TensorFlow; policies and servers do without.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from jax import export
from jax.experimental import jax2tf

from vla_jax.serving.stablehlo import PLATFORMS


def write(
    directory: Path, functions: Mapping[str, export.Exported], tensors: Mapping[str, np.ndarray]
) -> None:
    """Writes a SavedModel with a signature of each function's name and inputs named as there."""
    names = ("images", "tokens", "valid", "temperature", "seeds", "state", "state_valid")
    module: Any = tf.Module()
    variables = {name: tf.Variable(tf.constant(x), trainable=False) for name, x in tensors.items()}
    module.parameters = list(variables.values())  # a module saves what its attributes hold
    signatures = {}
    for name, function in functions.items():
        inputs = function.in_avals[len(tensors) :]
        call = jax2tf.convert(
            function.call,
            polymorphic_shapes=[None, *("(batch, ...)" for _ in inputs)],
            native_serialization_platforms=PLATFORMS,
            with_gradient=False,
        )
        signatures[name] = _signature(call, variables).get_concrete_function(
            *(tf.TensorSpec([None, *x.shape[1:]], x.dtype, key) for x, key in zip(inputs, names))
        )
        setattr(module, name, signatures[name])
    tf.saved_model.save(module, str(directory), signatures=signatures)


def _signature(call: Any, variables: Mapping[str, tf.Variable]) -> Any:
    def run(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"ids": call(dict(variables), *inputs)}

    return tf.function(run, autograph=False)
