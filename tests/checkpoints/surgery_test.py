"""Resizing and extending keep what they do not change, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from vla_jax.checkpoints.surgery import (
    Change,
    Stored,
    extend_vocabulary,
    fit,
    reassign_rows,
    resize_positions,
)

EMBEDDING = "llm/embedder/input_embedding"
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


def _stored(x: np.ndarray) -> Stored:
    return Stored(x.shape, lambda: x)


def test_fit_says_what_becomes_of_each():
    positions = RNG.normal(size=(1, 9, 4)).astype(np.float32)
    norm = _stored(RNG.normal(size=5).astype(np.float32))
    name = "llm/final_norm/scale"
    assert fit(name, norm, (5,)) == (norm, Change(name, "loaded", "(5,)"))
    resized, change = fit("img/pos_embedding", _stored(positions), (1, 16, 4))
    assert change.status == "resized" and resized.shape == (1, 16, 4)
    assert np.array_equal(resized.read(), resize_positions(positions, 16))
    longer, change = fit(EMBEDDING, _stored(TABLE), (512, 6))
    assert change == Change(EMBEDDING, "resized", "(500, 6) -> (512, 6)")
    assert np.array_equal(longer.read()[:500], TABLE) and len(longer.read()) == 512
    # Padding of a published table is cut, real rows are not.
    assert np.array_equal(fit(EMBEDDING, _stored(TABLE), (450, 6))[0].read(), TABLE[:450])
    unread = Stored((500, 6), lambda: pytest.fail("read for nothing"))
    for bad, shape in ((EMBEDDING, (300, 6)), (EMBEDDING, (500, 7)), (name, (500, 5))):
        with pytest.raises(ValueError, match=rf"{bad} is \(500, 6\) in the file, the model has"):
            fit(bad, unread, shape)
    with pytest.raises(ValueError, match="9 patches do not resize to 20"):
        fit("img/pos_embedding", _stored(positions), (1, 20, 4))
