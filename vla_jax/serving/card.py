"""A bundle's model card, for people: README.md from the facts of card.json."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vla_jax.serving.bundle import PolicySettings

_STABLEHLO = """
## Without vla_jax

`stablehlo/act.stablehlo` (and `answer.stablehlo`) run with JAX and safetensors alone, on CPU, CUDA
and TPU, for any number of rows:

    import glob, jax, safetensors.numpy
    parameters = {}
    for file in glob.glob("parameters*.safetensors"):
        parameters |= safetensors.numpy.load_file(file)
    act = jax.export.deserialize(bytearray(open("stablehlo/act.stablehlo", "rb").read()))
    ids = jax.jit(act.call)(parameters, images, tokens, valid, temperature, seeds)
"""
_SAVED_MODEL = """
`saved_model` runs with TensorFlow alone:

    model = tf.saved_model.load("saved_model")
    ids = model.signatures["act"](images=images, tokens=tokens, valid=valid,
                                  temperature=temperature, seeds=seeds)["ids"]
"""


def markdown(facts: dict[str, Any], settings: PolicySettings) -> str:
    """README.md.

    Args:
      facts: what is in card.json.
    """
    model, state = settings.model, settings.state
    lines = [
        f"# {facts['model']}, {facts['steps']:,} steps",
        "",
        f"{facts['parameters']:,} parameters in {facts['dtype']}, exported "
        f"{facts['exported']['date']} by code {facts['exported']['git']}. "
        "Load it with `vla_jax.serving.load(directory)`.",
        "",
        "## Input",
        "",
        f"* images of {model.image_size} x {model.image_size} (resized: {settings.resize}); "
        f"cameras: {', '.join(facts['cameras']) or 'one'}; frames: {settings.frames}",
        f"* prompt: `{settings.robot_template}`, questions `{settings.question_template}`",
        f"* state: {state.kind}" + (f" of {len(state.low)} numbers" if state.low else ""),
        "",
        *_robot(facts["robot"], settings),
        "## Training mixture",
        "",
        *_table(
            ("source", "kind", "records", "configured share", "realised share", "epochs"),
            (
                (name, s["kind"], s["records"], *map(_number, _shares(s)))
                for name, s in facts["mixture"].items()
            ),
        ),
        "## Evaluation",
        "",
        *_evaluation(facts["evaluation"]),
        "## What the dtype changes",
        "",
        *_change(facts["dtype_change"]),
    ]
    text = "\n".join(lines)
    if "stablehlo" in facts["formats"]:
        text += _STABLEHLO
    if "saved_model" in facts["formats"]:
        text += _SAVED_MODEL
    return text.rstrip() + "\n"


def _robot(robot: dict[str, Any] | None, settings: PolicySettings) -> list[str]:
    if robot is None:
        return []
    spec = robot["spec"]
    decay = settings.ensemble_decay
    return [
        f"## Actions of {spec['name']}",
        "",
        f"{spec['control_hz']:g} Hz; frame: {spec['frame']}; rotation: {spec['rotation']}; "
        f"gripper: {spec['gripper']}. Scaled by: {robot['statistics']['kind']}. Of a chunk "
        f"{settings.execute_steps} are done before the next look, "
        + ("without ensembling." if decay is None else f"ensembled with decay {decay:g}."),
        "",
        *_table(
            ("dimension", "unit", "low", "high", "levels"),
            ((d["name"], d["unit"], d["low"], d["high"], d["levels"]) for d in spec["dimensions"]),
        ),
    ]


def _shares(source: dict[str, Any]) -> tuple[Any, Any, Any]:
    return source["share_configured"], source["share_of_samples"], source["epoch"]


def _evaluation(results: dict[str, Any]) -> list[str]:
    rows = [
        (name, key, _number(value))
        for name, scalars in results.items()
        for key, value in scalars.items()
        if isinstance(value, float)
    ]
    if not rows:
        return ["The run was not evaluated.", ""]
    return _table(("part", "measure", "value"), rows)


def _change(change: dict[str, Any] | str) -> list[str]:
    if isinstance(change, str):
        return [change[0].upper() + change[1:] + ".", ""]
    return [
        f"On {change['steps']} held-out steps {change['same_tokens']:.2%} of the action tokens are "
        "those of float32. Mean errors:",
        "",
        *_table(
            ("dimension", "unit", "float32", "this bundle", "apart"),
            (
                (
                    d["name"],
                    d["unit"],
                    *(_number(d[k]) for k in ("error_float32", "error", "apart")),
                )
                for d in change["dimensions"]
            ),
        ),
    ]


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    def line(cells: tuple[Any, ...]) -> str:
        return "| " + " | ".join("-" if c is None else str(c) for c in cells) + " |"

    return [line(head), line(("---",) * len(head)), *map(line, rows), ""]


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"
