"""Resizing and extending keep what they do not change, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from vla_jax.checkpoints.surgery import (
    Change,
    extend_vocabulary,
    fit,
    reassign_rows,
    resize_positions,
)

RNG = np.random.default_rng(0)
TABLE = RNG.normal(0.3, 2.0, (500, 6)).astype(np.float32)


def test_positions_are_interpolated_as_a_plane():
    """A plane stays a plane: between centres of patches linear, level beyond the outermost."""
    y, x = (np.mgrid[:4, :4] + 0.5) / 4
    old = np.stack([y, x, 2 * y - 3 * x], axis=-1).reshape(1, 16, 3).astype(np.float32)
    y, x = np.clip((np.mgrid[:7, :7] + 0.5) / 7, 0.5 / 4, 3.5 / 4)
    want = np.stack([y, x, 2 * y - 3 * x], axis=-1).reshape(1, 49, 3)
    np.testing.assert_allclose(resize_positions(old, 49), want, atol=1e-6)
    assert resize_positions(old, 16) is old
    with pytest.raises(ValueError, match="16 patches do not resize to 20"):
        resize_positions(old, 20)


def test_new_rows_are_drawn_like_the_old_ones():
    longer = extend_vocabulary(TABLE, 2500)
    assert np.array_equal(longer[:500], TABLE) and longer.dtype == TABLE.dtype
    np.testing.assert_allclose(longer[500:].mean(0), TABLE.mean(0), atol=0.2)
    np.testing.assert_allclose(longer[500:].std(0), TABLE.std(0), rtol=0.1)
    with pytest.raises(ValueError, match="500 rows, more than 400"):
        extend_vocabulary(TABLE, 400)


def test_reassigned_rows_are_a_curve_and_others_stay():
    ids = RNG.permutation(500)[:256]
    changed = reassign_rows(TABLE, ids)
    others = np.setdiff1d(np.arange(500), ids)
    assert np.array_equal(changed[others], TABLE[others])
    curve = changed[ids] - changed[ids].mean(0)
    near = np.linalg.norm(curve[1:] - curve[:-1], axis=1).mean()
    far = np.linalg.norm(curve[128:] - curve[:-128], axis=1).mean()
    assert near < 0.15 * far
    np.testing.assert_allclose(curve.std(0), TABLE.std(0), rtol=0.8)
    for wrong in ([3, 3], [-1], [500]):
        with pytest.raises(ValueError, match=r"different ids in 0 \.\. 499"):
            reassign_rows(TABLE, wrong)


def test_fit_says_what_became_of_each():
    positions = RNG.normal(size=(1, 9, 4)).astype(np.float32)
    norm = RNG.normal(size=5).astype(np.float32)
    found = {
        "llm/embedder/input_embedding": TABLE,
        "img/pos_embedding": positions,
        "llm/final_norm/scale": norm,
    }
    fresh = {
        "llm/embedder/input_embedding": np.zeros((512, 6), np.float32),
        "img/pos_embedding": np.zeros((1, 16, 4), np.float32),
        "llm/final_norm/scale": np.zeros(5, np.float32),
        "img/head/kernel": np.ones((4, 6), np.float32),
    }
    fitted, changes = fit(found, fresh)
    assert [(c.name, c.status) for c in changes] == [
        ("llm/embedder/input_embedding", "resized"),
        ("img/pos_embedding", "resized"),
        ("llm/final_norm/scale", "loaded"),
        ("img/head/kernel", "fresh"),
    ]
    assert changes[0] == Change("llm/embedder/input_embedding", "resized", "(500, 6) -> (512, 6)")
    assert np.array_equal(fitted["llm/embedder/input_embedding"][:500], TABLE)
    assert fitted["llm/final_norm/scale"] is norm
    assert np.array_equal(fitted["img/head/kernel"], np.ones((4, 6)))
    # Padding of a published table is cut, real rows are not.
    fresh["llm/embedder/input_embedding"] = np.zeros((450, 6), np.float32)
    fitted, _ = fit(found, fresh)
    assert np.array_equal(fitted["llm/embedder/input_embedding"], TABLE[:450])
    fresh["llm/embedder/input_embedding"] = np.zeros((300, 6), np.float32)
    with pytest.raises(ValueError, match=r"input_embedding is \(500, 6\) .* has \(300, 6\)"):
        fit(found, fresh)
