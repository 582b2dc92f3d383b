"""The Open X-Embodiment data sets, one entry each.

Feature names and shapes are those of the TFDS catalog (tensorflow.org/datasets/catalog/NAME) or of
the data set's own builder. Control rates are those that LeRobot's and RDT's conversions list. The
sign of a gripper is the data set's own description where it has one, and else what both Octo
(github.com/octo-models/octo) and OpenVLA (github.com/openvla/openvla) make of it; the note says so
where the two disagree or only they know. Bounds "of RT-X" are the ranges on disk that
github.com/google-deepmind/open_x_embodiment states beside its scaling of actions.
"""

from __future__ import annotations

import difflib

from vla_jax.data.oxe.more_records import MORE_RECORDS
from vla_jax.data.oxe.record import OxeRecord
from vla_jax.data.oxe.rtx_records import RTX_RECORDS

_ALIASES = {"bridge_dataset": "bridge_orig", "fmb_dataset": "fmb"}

RECORDS: dict[str, OxeRecord] = {record.name: record for record in (*RTX_RECORDS, *MORE_RECORDS)}
"""By published name."""


def find_record(name: str) -> OxeRecord:
    """The record of data set `name`; "bridge_dataset" is bridge_orig, "fmb_dataset" is fmb.

    Raises ValueError, with the closest names, if there is none.
    """
    known = RECORDS | {alias: RECORDS[target] for alias, target in _ALIASES.items()}
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, cutoff=0.4)
    raise ValueError(
        f"no record of data set {name!r}; "
        + (f"closest: {', '.join(close)}" if close else f"known: {', '.join(known)}")
    )


def table() -> str:
    """One line a record: name, robot, kind, motion, frame, rate, gripper, bounds."""
    head = "data set, robot, kind, motion, frame, Hz, gripper, +-position, +-rotation"
    rows: list[tuple[str, ...]] = [tuple(head.split(", "))]
    for record in RECORDS.values():
        bounds = ["quantiles" if limit is None else f"{limit:.3g}" for limit in record.limits]
        if not record.rotation or record.kind != "end effector":
            bounds[1] = "-"
        rows.append(
            (
                record.name.removesuffix("_converted_externally_to_rlds"),
                record.robot,
                record.kind,
                record.motion,
                record.frame,
                f"{record.control_hz:g}",
                record.gripper_form,
                *bounds,
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows)
