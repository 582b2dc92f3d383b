"""The vocabulary of a GGUF file against the SentencePiece model that it was made from."""

from __future__ import annotations

import io

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as protos

from vla_jax.checkpoints.gguf import read_vocabulary
from vla_jax.corpus.dataset import Corpus
from vla_jax.text.vocabulary import Vocabulary

gguf = pytest.importorskip("gguf")

KIND = protos.ModelProto.SentencePiece.Type
# As in Gemma's: runs of spaces and lines, and names for what is no text.
SYMBOLS = ["<mask>", "<unused0>", "[multimodal]", "\n", "\n\n", "▁▁", "▁▁▁", "\t\t"]
TEXTS = (
    "Q: what action should the robot take to pick the dog? A:",
    "two  spaces, three   and four    of them; \t\t tabs\n\n\nand lines\n",
    "<012><200> 4711 <unused0> <mask> <pad> <0x41> [multimodal]",
    "Bär, 犬, собака, 🤖",
    "",
    " ",
)


@pytest.fixture(scope="module")
def original() -> bytes:
    """Trained with the settings of Gemma's, on the corpus' questions."""
    corpus, model = Corpus(seed=1), io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=(" ".join(corpus.text(i)) for i in range(200)),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        split_digits=True,
        split_by_whitespace=False,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=SYMBOLS,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _write_gguf(path, original: bytes, *, without: str = "") -> None:
    """As llama.cpp converts it: named symbols become control tokens, meta symbols spaces."""
    model = protos.ModelProto.FromString(original)
    kinds, scores = [p.type for p in model.pieces], [p.score for p in model.pieces]
    pieces = [p.piece for p in model.pieces]
    for i, (piece, kind) in enumerate(zip(pieces, kinds)):
        if kind == KIND.USER_DEFINED:
            pieces[i] = piece.replace("▁", " ")
        if kind in (KIND.CONTROL, KIND.UNKNOWN) or piece in ("<mask>", "<unused0>"):
            kinds[i] = KIND.CONTROL
        if kinds[i] in (KIND.CONTROL, KIND.USER_DEFINED):
            scores[i] = -1000.0
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    if without != "scores":
        writer.add_token_scores(scores)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def test_vocabulary_is_the_one_that_the_file_was_made_from(original, tmp_path):
    _write_gguf(tmp_path / "a.gguf", original)
    rebuilt = read_vocabulary(tmp_path / "a.gguf")
    want, got = (protos.ModelProto.FromString(model) for model in (original, rebuilt))
    assert len(got.pieces) == 600
    for a, b in zip(want.pieces, got.pieces):
        assert (a.piece, a.type, a.score) == (b.piece, b.type, pytest.approx(b.score)), a.piece
    assert {p.type for p in got.pieces} == {1, 2, 3, 4, 6}  # no piece is unused
    old, new = (sentencepiece.SentencePieceProcessor(model_proto=m) for m in (original, rebuilt))
    corpus = Corpus(seed=2)
    for text in (*TEXTS, *(part for i in range(50) for part in corpus.text(i))):
        ids = new.Encode(text)
        assert ids == old.Encode(text) and new.Decode(ids) == text, text
    assert new.PieceToId("▁▁") in new.Encode("two  spaces")

    (tmp_path / "a.model").write_bytes(rebuilt)
    vocabulary = Vocabulary(tmp_path / "a.model", expected_size=600)
    assert not vocabulary.has_integers and len(vocabulary.digit_ids) == 11
    assert vocabulary.reserved.sum() == 4 + 256  # the named symbols are free for actions


def test_file_without_a_vocabulary(original, tmp_path):
    _write_gguf(tmp_path / "a.gguf", original, without="scores")
    with pytest.raises(ValueError, match=r"a\.gguf has no 'tokenizer\.ggml\.scores'"):
        read_vocabulary(tmp_path / "a.gguf")
    with pytest.raises(FileNotFoundError, match=r"no GGUF file .*none\.gguf"):
        read_vocabulary(tmp_path / "none.gguf")
