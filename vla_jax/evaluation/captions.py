"""Captions against several people's: CIDEr-D and BLEU."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_jax.evaluation.base import Result, finite

if TYPE_CHECKING:
    from vla_jax.decoding.policy import Policy

EXAMPLES = 12
MAX_N = 4
_SIGMA = 6.0
# Scripts without spaces between words count letter by letter.
_WORDS = re.compile(
    r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|(?:(?![\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff])[\w'])+"
)

Counts = collections.Counter[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class CaptionBatch:
    """A few held-out pictures.

    Attributes:
      images: uint8 [n, h, w, 3] or [n, views, h, w, 3].
      prompts: whole, with the template.
      references: what people said of each.
      numbers: int [n], of the samples in the pass; None: they come one after the other.
    """

    images: np.ndarray
    prompts: list[str]
    references: list[tuple[str, ...]]
    numbers: np.ndarray | None = None


class CaptionEvaluator:
    """CIDEr-D and BLEU-1 to -4 over held-out pictures.

    Args:
      batches: starts one pass over them.
      name: of the result.

    Raises ValueError if the package that computes BLEU is missing.
    """

    def __init__(self, batches: Callable[[], Iterator[CaptionBatch]], name: str = "captions"):
        self._batches, self.name = batches, name
        _require_sacrebleu()

    def measure(self, policy: Policy, media: Path | None = None) -> Result:
        """See `Evaluator`."""
        found: list[tuple[int, str, tuple[str, ...]]] = []
        for batch in self._batches():
            said = policy.complete(batch.images, batch.prompts)
            numbers = range(len(found), len(found) + len(said))
            numbers = numbers if batch.numbers is None else batch.numbers.tolist()
            found += zip(numbers, said, batch.references)
        found = sorted(policy.gather(found))
        if not found:
            raise ValueError(f"evaluator {self.name!r} was given no captions")
        said, references = [s for _, s, _ in found], [r for _, _, r in found]
        scalars = {"cider_d": cider_d(said, references)}
        scalars |= {f"bleu_{n}": v for n, v in enumerate(bleu(said, references), 1)}
        examples = [{"said": s, "references": list(r)} for _, s, r in found[:EXAMPLES]]
        return {"n": len(found), "scalars": finite(scalars), "examples": examples}


def words(text: str) -> list[str]:
    """Small letters, without punctuation."""
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def bleu(said: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, ...]:
    """BLEU-1 to BLEU-4 of all captions together, 0 to 1, without smoothing.

    Papineni et al. 2002; the reference nearest in length counts. By sacrebleu.
    """
    sacrebleu = _require_sacrebleu()
    spoken = [" ".join(words(text)) for text in said]
    tokens = [[" ".join(words(text)) for text in texts] for texts in references]
    most = max(len(texts) for texts in tokens)
    # Its reference n is the n-th of every caption.
    streams = [[t[n] if n < len(t) else None for t in tokens] for n in range(most)]
    scores = []
    for n in range(1, MAX_N + 1):
        metric = sacrebleu.BLEU(max_ngram_order=n, tokenize="none", smooth_method="none")
        scores.append(metric.corpus_score(spoken, streams).score / 100)
    return tuple(scores)


def cider_d(said: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D, 0 to 10 (Vedantam et al., arXiv 1411.5726, section 7), as the COCO server has it.

    How rare an n-gram is follows from the references of these very pictures, so the figure depends
    on how many there are; of a single one it is 0. No package that is kept up computes it without
    Java or torch.
    """
    true = [[_counts(text) for text in texts] for texts in references]
    pictures = collections.Counter(
        gram for texts in true for gram in set().union(*(text.keys() for text in texts))
    )

    def weight(gram: tuple[str, ...]) -> float:
        return math.log(len(true)) - math.log(max(1, pictures[gram]))

    scores = []
    for text, texts in zip(said, true, strict=True):
        candidate = _counts(text)
        each = [_similarity(candidate, reference, weight) for reference in texts]
        scores.append(10 * float(np.mean(each)))
    return float(np.mean(scores))


def _counts(text: str) -> Counts:
    """How often each n-gram of up to `MAX_N` words occurs."""
    tokens = words(text)
    return collections.Counter(
        tuple(tokens[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(tokens) - n + 1)
    )


def _similarity(said: Counts, true: Counts, weight: Callable[[tuple[str, ...]], float]) -> float:
    """Mean over n of the clipped cosine, less where lengths differ."""
    total = 0.0
    for n in range(1, MAX_N + 1):
        a = {gram: count * weight(gram) for gram, count in said.items() if len(gram) == n}
        b = {gram: count * weight(gram) for gram, count in true.items() if len(gram) == n}
        norms = math.hypot(*a.values()) * math.hypot(*b.values())
        if norms:
            total += (
                sum(min(x, b.get(gram, 0.0)) * b.get(gram, 0.0) for gram, x in a.items()) / norms
            )
    # The server counts pairs of words.
    lengths = [sum(c for gram, c in counts.items() if len(gram) == 2) for counts in (said, true)]
    return total / MAX_N * math.exp(-((lengths[0] - lengths[1]) ** 2) / (2 * _SIGMA**2))


def _require_sacrebleu() -> Any:
    try:
        import sacrebleu  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise ValueError(
            "scoring captions needs the package sacrebleu: pip install 'vla_jax[captions]', or "
            f"leave captions out ({e})"
        ) from e
    return sacrebleu
