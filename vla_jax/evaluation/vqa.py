"""Questions about held-out pictures: words, places and boxes, scored per task."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vla_jax.corpus import coordinates
from vla_jax.evaluation.answers import commonest, normalize, vqa_accuracy
from vla_jax.evaluation.base import Result, finite
from vla_jax.evaluation.media import Marked, save_png
from vla_jax.evaluation.statistics import Sums

if TYPE_CHECKING:
    from vla_jax.decoding.policy import Policy

NAMING_TASKS = ("name", "caption")
"""Tasks whose answers are names; counted apart from the questions."""
POINT_TOLERANCE = 0.06
"""A point is right within this share of the image's side, as near as half a small object."""
OFFSET_UNITS = {
    "offset": 1 / coordinates.OFFSET_UNITS,
    "reach": coordinates.REACH_SHARE / coordinates.OFFSET_UNITS,
}
"""Tasks whose answers are distances: what one integer piece is, as a share of the image's side."""
EXAMPLES_PER_TASK = 1  # right ones, and as many wrong ones
CONFUSIONS_PER_TASK = 8
MATRIX_LABELS = 10

_PIECES = re.compile(r"(?:<\d{3}>)+")


@dataclasses.dataclass(frozen=True)
class VqaBatch:
    """A few held-out samples.

    Attributes:
      images: uint8 [n, h, w, 3] or [n, views, h, w, 3].
      questions: without the prompt template, or whole prompts if `whole`.
      answers, tasks, languages: of each.
      references: all that people answered to each; None: the answers alone.
      numbers: int [n], of the samples in the pass; None: they come one after the other.
      whole: the questions are prompts of another template.
    """

    images: np.ndarray
    questions: list[str]
    answers: list[str]
    tasks: list[str]
    languages: list[str]
    references: list[tuple[str, ...]] | None = None
    numbers: np.ndarray | None = None
    whole: bool = False


class _Answered(NamedTuple):
    """A sample that is answered; sorts by its number."""

    number: int
    task: str
    language: str
    truth: str
    references: tuple[str, ...]
    said: str
    side: int


def integer_pieces(text: str) -> np.ndarray | None:
    """`<012><200>` -> int [2] array; None for a text that is not integer pieces alone."""
    text = "".join(text.split())
    if not _PIECES.fullmatch(text):
        return None
    values = np.asarray([int(v) for v in text[1:-1].split("><")])
    return values if values.max() < 256 else None


def names_matched(truth: str, said: str) -> tuple[int, int]:
    """How many of the comma-separated names of `truth` are in `said`, and how many there are.

    Order does not matter; a name said once counts once.
    """
    wanted = collections.Counter(normalize(n) for n in truth.split(",") if n.strip())
    given = collections.Counter(normalize(n) for n in said.split(",") if n.strip())
    return (wanted & given).total(), wanted.total()


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes [y0, x0, y1, x1]; 0 for an empty or inverted one."""
    inter = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    overlap = float(np.prod(np.maximum(inter, 0)))
    areas = [float(np.prod(np.maximum(box[2:] - box[:2], 0))) for box in (a, b)]
    union = areas[0] + areas[1] - overlap
    return overlap / union if union > 0 else 0.0


class VqaEvaluator:
    """Exact match, naming, pointing and boxes over held-out samples.

    Words are compared as VQA does, see `answers`; "exact_match" is with what most people answered.
    A sample's kind follows from its true answer: two or three integer pieces are a point (in
    `OFFSET_UNITS`: a distance), four a box, all else text.

    Args:
      batches: starts one pass over the samples.
      name: of the result.
    """

    def __init__(self, batches: Callable[[], Iterator[VqaBatch]], name: str = "vqa"):
        self._batches = batches
        self.name = name

    def measure(self, policy: Policy, media: Path | None = None) -> Result:
        """See `Evaluator`. Distances are in pixels of the image that the model sees."""
        examples = _Examples(self.name, media)
        answered: list[_Answered] = []
        for batch in self._batches():
            ask = policy.complete if batch.whole else policy.answer
            said = ask(batch.images, batch.questions)
            side = batch.images.shape[-2]
            mine = _answered(batch, said, side, len(answered))
            for row, sample in enumerate(mine):
                examples.offer(batch, row, sample.said, _Scorer().add(sample))
            answered += mine
        # In the order of the pass, however it was divided.
        scorer = _Scorer()
        for sample in sorted(policy.gather(answered)):
            scorer.add(sample)
        if not scorer.samples:
            raise ValueError(f"evaluator {self.name!r} was given no samples")
        return {**scorer.result(), "examples": examples.kept}


def _answered(batch: VqaBatch, said: list[str], side: int, first: int) -> list[_Answered]:
    numbers = range(first, first + len(said)) if batch.numbers is None else batch.numbers.tolist()
    references = batch.references or [(answer,) for answer in batch.answers]
    return [
        _Answered(number, task, language, truth, people, answer, side)
        for number, task, language, truth, people, answer in zip(
            numbers, batch.tasks, batch.languages, batch.answers, references, said, strict=True
        )
    ]


class _Scorer:
    def __init__(self):
        self.samples = 0
        self._side = 0
        self._sums = Sums()
        self._kinds: dict[str, str] = {}  # task -> kind
        self._languages: set[str] = set()
        self._distances: dict[str, list[float]] = collections.defaultdict(list)
        self._confusion: dict[str, collections.Counter[tuple[str, str]]] = collections.defaultdict(
            collections.Counter
        )

    def add(self, sample: _Answered) -> bool:
        """Scores one answer; returns whether it counts as right."""
        self.samples += 1
        self._side = sample.side
        places = integer_pieces(sample.truth)
        if places is None:
            return self._add_text(sample)
        guess = integer_pieces(sample.said)
        if guess is not None and len(guess) != len(places):
            guess = None
        if len(places) == 4:
            return self._add_box(sample.task, places, guess)
        return self._add_point(sample.task, places, guess, sample.side)

    def _add_text(self, sample: _Answered) -> bool:
        task, truth, said = sample.task, commonest(sample.references), sample.said
        right = normalize(truth) == normalize(said)
        kind = "naming" if task in NAMING_TASKS else "question"
        self._kinds[task] = kind
        self._sums.add(f"{kind}/{task}", right)
        self._sums.add(f"all/{kind}", right)
        self._sums.add("all/right", right)
        if kind == "question":
            self._sums.add("all/vqa_accuracy", vqa_accuracy(said, sample.references))
        self._confusion[task][_shown(task, truth), _shown(task, said)] += 1
        if kind == "naming":
            matched, names = names_matched(truth, said)
            self._sums.add("names/all", np.arange(names) < matched)
            self._sums.add(f"names/{task}", np.arange(names) < matched)
            self._sums.add(f"language/{sample.language}", np.arange(names) < matched)
            self._languages.add(sample.language)
        return right

    def _add_point(self, task: str, truth: np.ndarray, guess: np.ndarray | None, side: int) -> bool:
        unit = OFFSET_UNITS.get(task, 1 / 256)
        if guess is None:
            error = float("nan")
            right = False
        else:
            error = float(np.linalg.norm((guess - truth) * unit))
            right = error <= POINT_TOLERANCE
            self._distances[task].append(error * side)
        self._kinds[task] = "point"
        self._sums.add(f"point/{task}", right)
        self._sums.add("all/point", right)
        self._sums.add("all/right", right)
        self._sums.add(f"malformed/{task}", guess is None)
        return right

    def _add_box(self, task: str, truth: np.ndarray, guess: np.ndarray | None) -> bool:
        iou = 0.0 if guess is None else box_iou(guess, truth)
        self._kinds[task] = "box"
        self._sums.add(f"iou/{task}", iou)
        self._sums.add(f"box/{task}", iou >= 0.5)
        self._sums.add("all/box", iou >= 0.5)
        self._sums.add("all/right", iou >= 0.5)
        self._sums.add(f"malformed/{task}", guess is None)
        return iou >= 0.5

    def result(self) -> Result:
        sums = self._sums
        tasks = []
        for task, kind in sorted(self._kinds.items(), key=lambda t: (t[1], t[0])):
            row: dict[str, Any] = {"task": task, "kind": kind, **sums.share(f"{kind}/{task}")}
            if kind in ("point", "box"):
                row["malformed"] = round(sums.total(f"malformed/{task}"))
            if kind == "point":
                distances = self._distances[task] or [float("nan")]
                row["median_px"] = float(np.median(distances))
                row["mean_px"] = float(np.mean(distances))
            if kind == "box":
                row["mean_iou"] = sums.mean(f"iou/{task}")
            if kind == "naming":
                row["names"] = sums.share(f"names/{task}")
            tasks.append(row)
        scalars = {"all": sums.mean("all/right")}
        for kind, label in (
            ("question", "exact_match"),
            ("naming", "naming_exact_match"),
            ("point", "point_within"),
            ("box", "box_iou_half"),
        ):
            scalars[label] = sums.mean(f"all/{kind}")
        scalars["vqa_accuracy"] = sums.mean("all/vqa_accuracy")
        scalars["names"] = sums.mean("names/all")
        for row in tasks:
            scalars[f"{row['kind']}/{row['task']}"] = row["share"]
            if "median_px" in row:
                scalars[f"point_px/{row['task']}"] = row["median_px"]
        return {
            "n": self.samples,
            "image_size": self._side,
            "tolerance": POINT_TOLERANCE,
            "questions": sums.share("all/question"),
            "naming": sums.share("all/naming"),
            "names": sums.share("names/all"),
            "points": sums.share("all/point"),
            "boxes": sums.share("all/box"),
            "right": sums.share("all/right"),
            "tasks": tasks,
            "languages": [
                {"language": code, **sums.share(f"language/{code}")}
                for code in sorted(self._languages)
            ],
            "confusions": {
                task: _confusions(counts) for task, counts in sorted(self._confusion.items())
            },
            "matrix": _matrix(self._confusion),
            "scalars": finite(scalars),
        }


def _shown(task: str, answer: str) -> str:
    """An answer in a table: as it is compared, but names stay apart."""
    if task in NAMING_TASKS:
        return ", ".join(normalize(name) for name in answer.split(","))
    return normalize(answer)


def _confusions(counts: collections.Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    """The commonest wrong answers of a task."""
    wrong = [(pair, n) for pair, n in counts.items() if pair[0] != pair[1]]
    wrong.sort(key=lambda item: (-item[1], item[0]))
    return [
        {"truth": truth, "said": said, "count": n}
        for (truth, said), n in wrong[:CONFUSIONS_PER_TASK]
    ]


def _matrix(confusion: dict[str, collections.Counter[tuple[str, str]]]) -> dict[str, Any]:
    """Per task with few different answers: counts [truth][said], the last column others.

    A task is left out if its `MATRIX_LABELS` commonest true answers make up less than half of it.
    """
    matrices = {}
    for task, counts in sorted(confusion.items()):
        truths = collections.Counter()
        for (truth, _), n in counts.items():
            truths[truth] += n
        common = dict(truths.most_common(MATRIX_LABELS))
        if len(common) < 2 or 2 * sum(common.values()) < truths.total():
            continue
        labels = sorted(common, key=lambda t: (not t.isdigit(), len(t) if t.isdigit() else 0, t))
        table = [[counts[truth, said] for said in labels] for truth in labels]
        others = [truths[truth] - sum(row) for truth, row in zip(labels, table)]
        matrices[task] = {
            "labels": labels,
            "counts": [[*row, other] for row, other in zip(table, others)],
        }
    return matrices


class _Examples:
    """A few pictures per task for the report, right and wrong ones in the order they come."""

    def __init__(self, name: str, media: Path | None):
        self.kept: list[dict[str, Any]] = []
        self._name, self._media = name, media
        self._seen: collections.Counter[tuple[str, bool]] = collections.Counter()

    def offer(self, batch: VqaBatch, row: int, said: str, right: bool) -> None:
        task = batch.tasks[row]
        self._seen[task, right] += 1
        if self._media is None or self._seen[task, right] > EXAMPLES_PER_TASK:
            return
        image = batch.images[row]
        path = self._media / f"{self._name}_{len(self.kept):03d}.png"
        _save(path, image[0] if image.ndim == 4 else image, task, batch.answers[row], said)
        self.kept.append(
            {
                "image": f"{self._media.name}/{path.name}",
                "task": task,
                "question": batch.questions[row],
                "truth": batch.answers[row],
                "said": said,
                "right": right,
            }
        )


_TRUE, _SAID = (20, 150, 90), (214, 48, 49)


def _save(path: Path, image: np.ndarray, task: str, truth: str, said: str) -> None:
    """The picture; if the answer is a place, with the true one in green and the said one in red."""
    places, guess = integer_pieces(truth), integer_pieces(said)
    if places is None or len(places) not in (2, 4) or task in OFFSET_UNITS:
        save_png(path, image)
        return
    marked = Marked(image)
    for where, color in ((places, _TRUE), (guess, _SAID)):
        if where is None or len(where) != len(places):
            continue
        pixels = tuple((where + 0.5) / 256 * len(image))
        if len(pixels) == 4:
            marked.box(pixels, color)
        elif where is places:
            marked.ring((pixels[0], pixels[1]), POINT_TOLERANCE * len(image), color)
        else:
            marked.cross((pixels[0], pixels[1]), color)
    marked.picture.save(path, optimize=True)
