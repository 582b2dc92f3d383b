"""The web-trained VLMs that ship fit the demo's config and point where their cards say."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from vla_jax import config as config_lib
from vla_jax.checkpoints.params_file import load_params
from vla_jax.corpus.dataset import Corpus
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.decoding.policy import Policy
from vla_jax.evaluation.base import inside_template
from vla_jax.evaluation.vqa import POINT_TOLERANCE, integer_pieces
from vla_jax.models.vla import init_params
from vla_jax.text.prompts import question_prompt
from vla_jax.text.vocabulary import Vocabulary

pytestmark = pytest.mark.usefixtures("optimized")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("size", ["demo", "demo_small"])
def test_it_points_as_its_card_says(size):
    overrides = [
        f"model.preset={size}",
        f"train.init_from=vla_jax/assets/{size}_vlm/vlm.npz",
    ]
    config = config_lib.parse(config_lib.load_config(ROOT / "configs/demo_cotrain.py", overrides))
    file = ROOT / config.train.init_from
    card = json.loads(file.with_suffix(".json").read_text())
    vocabulary = Vocabulary()
    assert card["vocabulary"] == vocabulary.digest
    assert file.stat().st_size < 10e6
    like = jax.eval_shape(lambda: init_params(config.model, jax.random.key(0)))
    builder = SequenceBuilder(vocabulary, None, max_tokens=40, max_answer_tokens=4)
    policy = Policy(load_params(file, like), config.model, builder, batch_size=32)
    corpus = Corpus(config.model.image_size, split="test", background_share=0.05)
    examples = [corpus.task_example("point_mat", i) for i in range(64)]
    questions = [inside_template(question_prompt, e["prompt"]) for e in examples]
    answers = policy.answer(np.stack([e["image"] for e in examples]), questions)
    right = 0
    for example, answer in zip(examples, answers):
        said, true = integer_pieces(answer), integer_pieces(example["answer"])
        right += said is not None and np.linalg.norm((said - true) / 256) <= POINT_TOLERANCE
    # Three standard deviations of 64 trials below its card.
    share = card["held_out"]["pictures/point/point_mat"]
    assert right / 64 > share - 3 * (share * (1 - share) / 64) ** 0.5
