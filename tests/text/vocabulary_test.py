from __future__ import annotations

import hashlib
import importlib.util
import io
import pathlib

import numpy as np
import pytest
import sentencepiece

from vla_jax.corpus.dataset import Corpus
from vla_jax.corpus.pictures import PictureBank
from vla_jax.text.prompts import robot_prompt
from vla_jax.text.vocabulary import BUNDLED, Vocabulary, integer_piece

TOOL = pathlib.Path(__file__).parents[2] / "tools/train_vocabulary.py"


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary()


def test_size_and_reserved_ids(vocabulary: Vocabulary):
    assert vocabulary.size == 4096
    ids = (vocabulary.pad_id, vocabulary.eos_id, vocabulary.bos_id, vocabulary.unk_id)
    assert ids == (0, 1, 2, 3)
    assert vocabulary.integer_ids.dtype == np.int32
    np.testing.assert_array_equal(vocabulary.integer_ids, np.arange(4, 260))
    assert vocabulary.digest == hashlib.sha256(BUNDLED.read_bytes()).hexdigest()[:16]
    assert BUNDLED.stat().st_size < 150_000


@pytest.mark.parametrize(
    "text",
    [
        "Q: point to the dog A:",
        "dog",
        "<093><181>",
        "<093><181> and <000>",
        "Q: what is at <184><031>? A:",
        "🐶 und 🦄, 犬 と 猫 · собака",
        " two  spaces   kept ",
        " <007>",
        "<7> <1234> <abc>",
        "قبعة رسمية",
        "line\nbreak\ttab",
        "▁ is the meta symbol's neighbour _",
        "",
    ],
)
def test_round_trip(vocabulary: Vocabulary, text: str):
    ids = vocabulary.encode(text)
    if "▁" in text:  # SentencePiece's own mark for a space: reads back as one
        text = text.replace("▁", " ")
    assert vocabulary.decode(ids) == text
    assert vocabulary.unk_id not in ids


def test_every_name_in_every_language_round_trips(vocabulary: Vocabulary):
    bank = PictureBank()
    for split in ("robot", "web_only", "nowhere", "background"):
        for key in bank.concepts(split):
            for name in bank.concept(key).names.values():
                assert vocabulary.decode(vocabulary.encode(name)) == name


def test_integer_pieces_are_one_token_each(vocabulary: Vocabulary):
    for value in range(256):
        assert vocabulary.encode(integer_piece(value)) == [vocabulary.integer_ids[value]]
    action = [0, 255, 128, 1, 93, 7, 42, 200]
    ids = vocabulary.encode("".join(map(integer_piece, action)))
    assert ids == vocabulary.integer_ids[action].tolist() and len(ids) == 8
    # Numbers in words are digits, never these pieces.
    assert not set(vocabulary.encode("number 255 and 12")) & set(vocabulary.integer_ids.tolist())


def test_a_word_is_the_same_token_first_or_inside(vocabulary: Vocabulary):
    assert vocabulary.encode("dog") == vocabulary.encode("the dog")[-1:]
    assert len(vocabulary.encode("dog")) == 1


def test_prompts_and_answers_are_short(vocabulary: Vocabulary):
    assert len(vocabulary.encode(robot_prompt("put the dog on the red mat"))) <= 20
    assert len(vocabulary.encode("Q: point to the dog A:")) <= 8
    corpus = Corpus()
    prompts, answers = zip(*(corpus.text(i) for i in range(1000)), strict=True)
    lengths = [[len(vocabulary.encode(t)) for t in texts] for texts in (prompts, answers)]
    assert np.percentile(lengths[0], 50) <= 11 and np.percentile(lengths[0], 99) <= 26
    assert np.percentile(lengths[1], 50) <= 3 and np.percentile(lengths[1], 99) <= 18


def _training_tool():
    spec = importlib.util.spec_from_file_location("train_vocabulary", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_training_again_gives_the_same_file(tmp_path: pathlib.Path):
    tool = _training_tool()
    first, second = tool.train(3200, 300), tool.train(3200, 300)
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()
    path = tmp_path / "small.model"
    path.write_bytes(first)
    assert Vocabulary(path, expected_size=3200).size == 3200
    with pytest.raises(ValueError, match=r"3200 ids, 4096 were expected"):
        Vocabulary(path, expected_size=4096)
    with pytest.raises(ValueError, match="too small"):
        tool.train(300, 10)


SAME_IDS = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}


def _model_without_integers(**options) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["the dog", "the cat"] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=280,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def test_unusable_files_are_named(tmp_path: pathlib.Path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.model.*train_vocabulary"):
        Vocabulary(tmp_path / "nothing.model")
    junk = tmp_path / "junk.model"
    junk.write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"junk\.model is not a SentencePiece model"):
        Vocabulary(junk)
    other = tmp_path / "other.model"
    other.write_bytes(_model_without_integers())
    with pytest.raises(ValueError, match="pad, eos, bos, unk"):
        Vocabulary(other)
    some = {"user_defined_symbols": ["<000>", "<001>"]}
    other.write_bytes(_model_without_integers(**SAME_IDS, **some))
    with pytest.raises(ValueError, match=r"254 of the integer pieces are missing, e\.g\. <002>"):
        Vocabulary(other)


def test_a_published_vocabulary_has_no_integers(tmp_path: pathlib.Path):
    """Like Gemma's: pad, eos, bos, unk are 0 .. 3, bytes are pieces, the table has spare rows."""
    path = tmp_path / "gemma.model"
    path.write_bytes(_model_without_integers(**SAME_IDS, user_defined_symbols=list("0123456789")))
    vocabulary = Vocabulary(path)
    assert not vocabulary.has_integers
    assert vocabulary.decode(vocabulary.encode("the cat <007>")) == "the cat <007>"
    with pytest.raises(ValueError, match=r"no pieces <000> \.\. <255> .* data\.actions\.token_ids"):
        _ = vocabulary.integer_ids
    pieces = [vocabulary.piece(i) for i in vocabulary.digit_ids]
    assert pieces == [*"0123456789", "\N{LOWER ONE EIGHTH BLOCK}"]
    assert vocabulary.reserved[:4].all() and vocabulary.reserved.sum() == 4 + 256
    size = vocabulary.size
    assert Vocabulary(path, expected_size=size + size // 100).size == size
    for wrong in (size - 1, size + size // 100 + 1):
        with pytest.raises(ValueError, match="do not belong together"):
            Vocabulary(path, expected_size=wrong)


def test_ids_outside_the_vocabulary_are_refused(vocabulary: Vocabulary):
    with pytest.raises(ValueError, match=r"\[4096\]"):
        vocabulary.decode([5, 4096])
    with pytest.raises(ValueError, match=r"\[-1\]"):
        vocabulary.decode([-1])
    assert vocabulary.decode([vocabulary.bos_id, *vocabulary.encode("dog"), 1, 0]) == "dog"
