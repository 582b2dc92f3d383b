"""Places and distances as integer pieces, and as words.

Coordinates are integer pieces `<000>` .. `<255>`, y first: piece i is the i-th of 256 equal bins of
the image. An offset is two signed pieces, 128 + round(127 * (target - source) / image size): 128
means none, 129 one 127th of the image down or right, 1 and 255 the whole image. How a gripper
reaches a thing is three pieces, four times as fine: its height above its dot, then how far to the
right and how far up the thing is from the dot, signed; 1 and 255 are a quarter of the image or
more.
"""

from __future__ import annotations

from vla_jax.corpus.scenes import Box, Gripper, Placed, Point

OFFSET_UNITS = 127
"""Offset pieces from none to the whole image."""
REACH_SHARE = 0.25
"""Share of the image that 127 pieces are in answers to how a gripper reaches a thing."""


def piece(value: int) -> str:
    """`<007>` for 7. Raises ValueError outside 0..255."""
    if not 0 <= value <= 255:
        raise ValueError(f"integer pieces go from 0 to 255, not {value}")
    return f"<{value:03d}>"


def point_bins(point: Point, size: int) -> tuple[int, int]:
    """(y, x) in pixels -> (y, x) bins 0..255; a point outside the image goes to the edge."""
    y, x = (min(255, max(0, int(256 * v / size))) for v in point)
    return y, x


def point_pieces(point: Point, size: int) -> str:
    return "".join(piece(v) for v in point_bins(point, size))


def box_pieces(box: Box, size: int) -> str:
    """`<y0><x0><y1><x1>`."""
    return point_pieces(box[:2], size) + point_pieces(box[2:], size)


def signed_piece(distance: float, limit: float) -> str:
    """128 for 0, 255 for `limit` and more, 1 for `-limit` and less."""
    units = round(OFFSET_UNITS * distance / limit)
    return piece(128 + min(OFFSET_UNITS, max(-OFFSET_UNITS, units)))


def offset_pieces(source: Point, target: Point, size: int) -> str:
    """`<dy><dx>` from `source` to `target`; see the module's docstring."""
    return "".join(signed_piece(t - s, size) for s, t in zip(source, target, strict=True))


def reach_pieces(gripper: Gripper, target: Point, size: int) -> str:
    """`<height><right><up>` of `target` for a gripper; see the module's docstring."""
    limit = REACH_SHARE * size
    height = piece(min(OFFSET_UNITS, round(OFFSET_UNITS * gripper.lift_px / limit)))
    right, up = target[1] - gripper.dot[1], gripper.dot[0] - target[0]
    return height + signed_piece(right, limit) + signed_piece(up, limit)


RELATIONS = ("left of", "right of", "above", "below")


def relation(source: Placed, target: Placed, size: int) -> str | None:
    """Where `target` is, seen from `source`: one of `RELATIONS`, None if on a diagonal or close.

    The larger of the two distances decides; it must be 1.4 times the other and 6% of the image.
    """
    dy, dx = target.center[0] - source.center[0], target.center[1] - source.center[1]
    if max(abs(dy), abs(dx)) < 0.06 * size:
        return None
    if abs(dx) > 1.4 * abs(dy):
        return "left of" if dx < 0 else "right of"
    if abs(dy) > 1.4 * abs(dx):
        return "above" if dy < 0 else "below"
    return None
