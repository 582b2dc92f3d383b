"""Token counts against Python's own, and which ids may be spared."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from vla_jax.corpus.dataset import Corpus
from vla_jax.text.least_used import count_tokens, least_used, load_ids, save_ids
from vla_jax.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary()


def _texts() -> list[str]:
    corpus = Corpus()
    return [text for i in range(300) for text in corpus.text(i)]


def test_counts_equal_a_counter():
    counts = count_tokens(VOCABULARY, _texts())
    want = collections.Counter(i for text in _texts() for i in VOCABULARY.encode(text))
    assert {i: n for i, n in enumerate(counts.tolist()) if n} == want
    assert counts.dtype == np.int64 and counts.shape == (4096,)


def test_the_least_used_are_used_no_more_than_the_others_and_never_reserved():
    counts = count_tokens(VOCABULARY, _texts())
    ids = least_used(VOCABULARY, counts, 256)
    assert len(set(ids.tolist())) == 256 and np.all(np.diff(ids) > 0)
    others = np.setdiff1d(np.flatnonzero(~VOCABULARY.reserved), ids)
    assert counts[ids].max() <= counts[others].min()
    # Integer pieces that no text had, bytes and control pieces are left alone.
    assert not VOCABULARY.reserved[ids].any()
    assert VOCABULARY.reserved[[0, 1, 2, 3, *VOCABULARY.integer_ids]].all()
    # By hand: 9 unused ones and the rarest of the used, the later of equals.
    counts = np.full(4096, 5)
    counts[[600, 700, 2000]] = 0
    counts[3000] = 1
    assert least_used(VOCABULARY, counts, 5).tolist() == [600, 700, 2000, 3000, 4095]


def test_ids_are_saved_for_one_vocabulary(tmp_path):
    counts = count_tokens(VOCABULARY, _texts())
    ids = least_used(VOCABULARY, counts, 1024)
    path = tmp_path / "tokens" / "ids.json"
    save_ids(path, VOCABULARY, ids, counts)
    np.testing.assert_array_equal(load_ids(path, VOCABULARY), ids)
    path.write_text(path.read_text().replace(VOCABULARY.digest, "0" * 16))
    with pytest.raises(ValueError, match="made for vocabulary 0000"):
        load_ids(path, VOCABULARY)
    for text in ("{", "[]", "{}"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"ids\.json is not a file of"):
            load_ids(path, VOCABULARY)
    with pytest.raises(FileNotFoundError, match=r"leave data\.actions\.token_ids empty"):
        load_ids(tmp_path / "none.json", VOCABULARY)
    with pytest.raises(ValueError, match="can be spared"):
        least_used(VOCABULARY, counts, 4000)
    with pytest.raises(ValueError, match=r"\(10,\) counts for a vocabulary of 4096"):
        least_used(VOCABULARY, counts[:10], 3)
