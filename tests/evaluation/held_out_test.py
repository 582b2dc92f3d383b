"""Instructions and states of held-out robot steps, whatever the form of their prompts."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.examples import SIZE, episodes
from vla_jax.actions.spec import end_effector_spec
from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.episodes import EpisodeLayout, EpisodeSource
from vla_jax.data.state import StateInput
from vla_jax.data.tfds_writer import write_episodes
from vla_jax.evaluation.held_out import action_batches
from vla_jax.text.vocabulary import Vocabulary

SPEC = end_effector_spec("test", max_position_m=0.05, max_rotation_rad=0.1, control_hz=5)
TEMPLATES = ("please {instruction} now", "do {instruction}")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("held_out") / "robot"
    write_episodes(episodes(), path, SPEC, name="robot", description="", test_every=5)
    return path


@pytest.mark.parametrize("plan", ["", "steps/language_instruction"], ids=["plain", "planned"])
@pytest.mark.parametrize("with_state", [False, True])
def test_action_batches_are_the_steps(path, plan, with_state):
    vocabulary = Vocabulary()
    layout = EpisodeLayout(plan=plan, state=("steps/observation/state",))
    source = EpisodeSource("robot", path, layout=layout, templates=TEMPLATES)
    builder = SequenceBuilder(
        vocabulary,
        UniformTokenizer(SPEC, vocabulary.integer_ids),
        max_tokens=64,
        max_answer_tokens=32,
        state=StateInput([-3] * 8, [3] * 8) if with_state else None,
    )
    start = action_batches(
        source, builder, batch_size=5, image_size=SIZE, limit=99, template=TEMPLATES[0]
    )
    batches = list(start())
    tracks = [source.track(n) for n in range(source.num_episodes)]
    instructions = [text for track in tracks for text in track.instructions]
    assert [text for batch in batches for text in batch.instructions] == instructions
    np.testing.assert_array_equal(
        np.concatenate([batch.actions[:, 0] for batch in batches]),
        np.concatenate([track.actions for track in tracks]),
    )
    if with_state:
        states = np.concatenate([batch.states for batch in batches])
        np.testing.assert_array_equal(states, np.concatenate([track.state for track in tracks]))
    else:
        assert all(batch.states is None for batch in batches)
