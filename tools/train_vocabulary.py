"""Trains the SentencePiece vocabulary from the corpus' own text and robot instructions.

    python tools/train_vocabulary.py [--out FILE] [--size 4096] [--samples 40000]

The same arguments give the same file, byte for byte (the SHA-256 is printed).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import pathlib
import random
from collections.abc import Iterator

import sentencepiece

from vla_jax.corpus.concepts import LANGUAGES
from vla_jax.corpus.dataset import Corpus
from vla_jax.corpus.pictures import MAT_COLORS, PictureBank
from vla_jax.text.prompts import robot_prompt
from vla_jax.text.vocabulary import BOS_ID, EOS_ID, INTEGERS, PAD_ID, UNK_ID, integer_piece

INSTRUCTIONS = (
    "pick {a}",
    "pick up {a}",
    "grasp {a}",
    "lift {a}",
    "take {a}",
    "grab {a} and lift it",
    "move {a} near {b}",
    "move {a} next to {b}",
    "move {a} close to {b}",
    "bring {a} to {b}",
    "slide {a} over to {b}",
    "put {a} on the {color} mat",
    "place {a} on the {color} mat",
    "move {a} onto the {color} mat",
    "set {a} down on the {color} mat",
    "put {a} on {b}",
    "place {a} on top of {b}",
    "push {a} to the left",
    "push {a} to the right",
    "push {a} to the front",
    "push {a} to the back",
    "push {a} left",
    "push {a} right",
    "push {a} forward",
    "push {a} backward",
    "push {a} away from you",
    "push {a} towards you",
    "slide {a} to the left",
    "slide {a} to the right",
    "nudge {a} to the front",
    "nudge {a} to the back",
    "push {a} toward {b}",
    "reach for {a}",
    "touch {a}",
    "move the gripper to {a}",
    "knock {a} over",
    "place {a} upright",
    "stack {a} on {b}",
    "open the gripper",
    "close the gripper",
    "move {a} to the middle of the table",
)
"""What a table-top robot may be told; `{a}` and `{b}` are objects."""


def training_text(samples: int) -> Iterator[str]:
    """Lines of text: corpus questions and answers, robot prompts, every name in every language."""
    bank = PictureBank()
    corpus = Corpus(seed=4096)
    rng = random.Random(4096)
    seen = (*bank.concepts("robot"), *bank.concepts("web_only"))
    for index in range(samples):
        prompt, answer = corpus.text(index)
        yield f" {prompt}"
        if not answer.startswith("<"):
            yield f" {answer}"
    for _ in range(samples // 2):
        a, b = (f"the {bank.name(key)}" for key in rng.sample(seen, 2))
        instruction = rng.choice(INSTRUCTIONS).format(a=a, b=b, color=rng.choice(MAT_COLORS))
        yield f" {robot_prompt(instruction)}"
    for key in (*seen, *bank.concepts("background")):
        for language in LANGUAGES:
            yield f" {bank.name(key, language)}"


def train(size: int, samples: int) -> bytes:
    """The serialized model. Raises ValueError if `size` is too small for the reserved ids."""
    smallest = 4 + INTEGERS + 256 + 512
    if size < smallest:
        raise ValueError(f"a vocabulary of {size} is too small: at least {smallest} ids")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=training_text(samples),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        character_coverage=0.9995,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=False,
        user_defined_symbols=[integer_piece(i) for i in range(INTEGERS)],
        pad_id=PAD_ID,
        eos_id=EOS_ID,
        bos_id=BOS_ID,
        unk_id=UNK_ID,
        num_threads=1,
        minloglevel=1,
    )
    return model.getvalue()


def main() -> None:
    default = pathlib.Path(__file__).parent.parent / "vla_jax/text/vocabulary_4096.model"
    parser = argparse.ArgumentParser(description="Train the vocabulary from the corpus.")
    parser.add_argument("--out", type=pathlib.Path, default=default)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=40_000)
    options = parser.parse_args()
    model = train(options.size, options.samples)
    options.out.write_bytes(model)
    print(f"{options.out}: {len(model)} bytes, sha256 {hashlib.sha256(model).hexdigest()}")


if __name__ == "__main__":
    main()
