"""Published mixtures of Open X-Embodiment data sets: how often each is sampled.

The weights are shares of the samples, relative to each other; that is also what
`SourceConfig.weight` means.
"""

from __future__ import annotations

import difflib

# As in Octo and OpenVLA; both give it to this many digits.
_FRACTAL, _KUKA = 0.54087122203, 0.8341046294

# Of Octo's and OpenVLA's mixtures alike.
_SOUP = {
    "kuka": _KUKA,
    "bridge_orig": 1.0,
    "taco_play": 2.0,
    "jaco_play": 1.0,
    "berkeley_cable_routing": 1.0,
    "roboturk": 2.0,
    "viola": 2.0,
    "berkeley_autolab_ur5": 2.0,
    "toto": 1.0,
    "stanford_hydra_dataset_converted_externally_to_rlds": 2.0,
    "austin_buds_dataset_converted_externally_to_rlds": 1.0,
    "nyu_franka_play_dataset_converted_externally_to_rlds": 3.0,
    "furniture_bench_dataset_converted_externally_to_rlds": 0.1,
    "ucsd_kitchen_dataset_converted_externally_to_rlds": 2.0,
    "austin_sailor_dataset_converted_externally_to_rlds": 1.0,
    "austin_sirius_dataset_converted_externally_to_rlds": 1.0,
    "dlr_edan_shared_control_converted_externally_to_rlds": 1.0,
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": 1.0,
    "utaustin_mutex": 1.0,
    "berkeley_fanuc_manipulation": 2.0,
    "cmu_stretch": 1.0,
    "bc_z": 0.2,
}

MIXTURES: dict[str, dict[str, float]] = {
    # RT-1-X and RT-2-X, arXiv 2310.08864: twelve data sets of nine robots. The weights are in the
    # training example of github.com/google-deepmind/open_x_embodiment, which leaves kuka and
    # language_table out of its own run.
    "rtx": {
        "fractal20220817_data": 150,
        "kuka": 20,
        "bridge": 50,
        "taco_play": 5,
        "jaco_play": 20,
        "berkeley_cable_routing": 20,
        "roboturk": 10,
        "nyu_door_opening_surprising_effectiveness": 5,
        "viola": 3,
        "berkeley_autolab_ur5": 5,
        "language_table": 30,
        "toto": 5,
    },
    # What Octo calls rtx.
    "rtx_octo": {
        "fractal20220817_data": _FRACTAL,
        "kuka": _KUKA,
        "bridge_orig": 1.0,
        "taco_play": 2.0,
        "jaco_play": 2.0,
        "berkeley_cable_routing": 3.0,
        "roboturk": 1.0,
        "nyu_door_opening_surprising_effectiveness": 5.0,
        "viola": 2.0,
        "berkeley_autolab_ur5": 1.0,
        "toto": 1.0,
    },
    # Octo, arXiv 2405.12213. OpenVLA's of the same name lacks nyu_door_opening and bc_z.
    "oxe_magic_soup": {
        **_SOUP,
        "fractal20220817_data": _FRACTAL,
        "nyu_door_opening_surprising_effectiveness": 1.0,
        "language_table": 0.1,
    },
    # OpenVLA, arXiv 2406.09246.
    "oxe_magic_soup_plus": {
        **_SOUP,
        "fractal20220817_data": _FRACTAL,
        "language_table": 0.1,
        "fmb": 1.0,
        "dobbe": 0.2,
        "droid": 0.06,
    },
    "oxe_magic_soup_plus_minus": {
        **_SOUP,
        "fractal20220817_data": 1.0,
        "fmb": 1.0,
        "dobbe": 0.2,
    },
    "bridge": {"bridge_orig": 1.0},
    "rt1": {"fractal20220817_data": 1.0},
    # The four suites alike. OpenVLA trains on one at a time.
    "libero": {
        "libero_spatial_no_noops": 1.0,
        "libero_object_no_noops": 1.0,
        "libero_goal_no_noops": 1.0,
        "libero_10_no_noops": 1.0,
    },
}
"""Mixture -> {data set of `records.RECORDS`: weight}."""


def find_mixture(name: str) -> dict[str, float]:
    """A copy of mixture `name`. Raises ValueError, with the closest names, if there is none."""
    if name in MIXTURES:
        return dict(MIXTURES[name])
    close = difflib.get_close_matches(name, MIXTURES, cutoff=0.4) or list(MIXTURES)
    raise ValueError(f"no mixture {name!r}; closest: {', '.join(close)}")
