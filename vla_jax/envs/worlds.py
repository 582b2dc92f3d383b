"""The worlds by name. Importing this loads no simulator."""

from __future__ import annotations

from typing import Any

from vla_jax.envs.metaworld.config import MetaworldConfig
from vla_jax.envs.tabletop.config import CONFIGS, TabletopConfig

WorldConfig = TabletopConfig | MetaworldConfig

WORLDS: dict[str, WorldConfig] = {
    **CONFIGS,
    "metaworld": MetaworldConfig(),
    "metaworld_noisy": MetaworldConfig(noise=0.3),
}
"""What `--config` names. The noisy one is for recording."""


def find_world(name: str) -> WorldConfig:
    """Raises ValueError, naming those there are, for another."""
    if name not in WORLDS:
        raise ValueError(f"no world {name!r}; there are {tuple(WORLDS)}")
    return WORLDS[name]


def open_world(config: WorldConfig) -> tuple[Any, Any]:
    """(environment, its scripted expert), in this process: one that never loads TensorFlow.

    Raises ImportError if its packages are not installed.
    """
    # Rendering belongs to the worker processes; their parent may hold TensorFlow.
    if isinstance(config, MetaworldConfig):
        from vla_jax.envs.metaworld import env as metaworld

        return metaworld.MetaworldEnv(config), metaworld.Expert()
    from vla_jax.envs.tabletop.env import TabletopEnv
    from vla_jax.envs.tabletop.expert import Expert

    return TabletopEnv(config), Expert()
