"""What every action tokenizer does, and which tokens may follow which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from vla_jax.actions.spec import ActionSpec


class Automaton(NamedTuple):
    """The legal token sequences of one action, as a finite automaton.

    Decoding starts in state 0 and ends in state S, which has no row. A model that may only choose
    what is legal in its state cannot emit a malformed action.

    Attributes:
      token_ids: int32 [R], vocabulary ids of all action tokens.
      legal: bool [S, R], which may stand in each state; at least one everywhere.
      next_state: int32 [S, R], where each leads: up to S.
      sampled: bool [S], where a temperature applies; False where a token is not a value but an
        event, like "terminate": drawn at each step, it would come sooner or later.
      max_tokens: of the longest sequence.
    """

    token_ids: np.ndarray
    legal: np.ndarray
    next_state: np.ndarray
    sampled: np.ndarray
    max_tokens: int


class ActionTokenizer(Protocol):
    """Actions [C, A] in physical units <-> token ids. Ids never pass through text."""

    kind: str
    """Its name in configs and files, see `actions.stored`."""
    spec: ActionSpec
    chunk: int
    """C: actions that are tokenized together."""
    token_ids: np.ndarray
    """int32 [R]: vocabulary ids of its tokens, in its own order."""

    @property
    def fitted(self) -> dict[str, Any]:
        """What was learned from data, as JSON values; {} if nothing."""
        ...

    @property
    def max_tokens(self) -> int:
        """Most tokens that one chunk of actions becomes."""
        ...

    def encode(self, action: np.ndarray) -> np.ndarray:
        """float [C, A] -> int32 ids [K].

        Values outside the bounds are clipped. Raises ValueError for a wrong size, NaN or infinity.
        """
        ...

    def encode_batch(self, actions: np.ndarray) -> Sequence[np.ndarray]:
        """float [n, C, A] -> n times what `encode` gives."""
        ...

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """int ids [K], padding allowed after the end -> float32 [C, A].

        Raises ValueError for anything but a legal sequence: it is refused, never turned into an
        extreme action.
        """
        ...

    def tokens_valid(self, ids: np.ndarray, action_valid: np.ndarray) -> np.ndarray:
        """Which tokens of `encode` say something of valid numbers; the others are not trained on.

        Args:
          ids: int [K], what `encode` returned.
          action_valid: bool [C, A], False for padded dimensions or steps.

        Returns:
          bool [K].
        """
        ...

    @property
    def automaton(self) -> Automaton: ...

    def text(self, ids: np.ndarray) -> str:
        """The tokens, for people."""
        ...


def accepts(automaton: Automaton, ids: np.ndarray) -> int:
    """Number of tokens of `ids` that make up a whole legal action; the rest is padding.

    Raises ValueError, naming the position, if there is no such number.
    """
    column = {int(i): n for n, i in enumerate(automaton.token_ids)}
    state = 0
    for position, token in enumerate(np.asarray(ids).tolist()):
        if state == len(automaton.legal):
            return position
        n = column.get(token)
        if n is None or not automaton.legal[state, n]:
            raise ValueError(f"token id {token} is not an action token at position {position}")
        state = int(automaton.next_state[state, n])
    if state != len(automaton.legal):
        raise ValueError(f"the action ends after {len(ids)} tokens, before it is complete")
    return len(ids)
