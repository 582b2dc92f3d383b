"""Questions about scenes, with answers computed from the geometry.

Coordinates are integer pieces, see `corpus.coordinates`.

`QuestionMaker.make` picks the task by weight; each task builds the scene it needs.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from vla_jax.corpus.concepts import LANGUAGES
from vla_jax.corpus.coordinates import (
    RELATIONS,
    box_pieces,
    offset_pieces,
    point_pieces,
    relation,
)
from vla_jax.corpus.gripper_questions import ask_grip, ask_gripper, ask_over, ask_reach
from vla_jax.corpus.phrases import CATEGORY_NOUNS, POINT_PHRASES, RELATED
from vla_jax.corpus.pictures import PictureBank
from vla_jax.corpus.scenes import LEAST_PX, Placed, Scene, compose
from vla_jax.corpus.task_weights import (
    ABOUT_ANY,
    ABOUT_CROWD,
    ABOUT_REPEATED,
    ABOUT_SEVERAL,
    NEED_SEVERAL,
    PACKED_WEIGHTS,
    TASK_WEIGHTS,
)
from vla_jax.text.prompts import question_prompt


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """A scene with one question about it. `prompt` has the question template applied."""

    scene: Scene
    task: str
    language: str
    prompt: str
    answer: str


class QuestionMaker:
    """Draws scenes and questions. Everything random comes from the `random.Random` passed in."""

    def __init__(
        self,
        bank: PictureBank,
        size: int,
        background_share: float = 0.3,
        max_pictures: int = 5,
        least_px: float = LEAST_PX,
        styles: int = 1,
    ):
        self.max_pictures, self.least_px, self.styles = max_pictures, least_px, styles
        self.bank = bank
        self.size = size
        self.background_share = background_share
        everything = (*bank.concepts("robot"), *bank.concepts("web_only"))
        self._curated = [bank.concepts("robot"), bank.concepts("web_only")]
        # Names like "st. helena ascension & tristan da cunha flag" make prompts of 36 tokens.
        self._background = [
            key for key in bank.concepts("background") if len(bank.name(key, "en")) <= 24
        ]
        self._numbers = tuple(k for k in everything if bank.value(k) is not None)
        categories: dict[str, list[str]] = {}
        for key in everything:
            categories.setdefault(bank.category(key), []).append(key)
        self._categories = {name: tuple(categories[name]) for name in CATEGORY_NOUNS}

    def make(self, rng: random.Random, weights: dict[str, float] | None = None) -> Sample:
        """A sample of a task drawn by `weights`, `TASK_WEIGHTS` unless given."""
        weights = TASK_WEIGHTS if weights is None else weights
        task = rng.choices(tuple(weights), tuple(weights.values()))[0]
        if self.max_pictures < 2 and task in NEED_SEVERAL:
            task = "point"
        for _ in range(12):
            sample = _TASKS[task](self, rng)
            if sample is not None:
                return sample
        return _point(self, rng)

    def make_task(self, task: str, rng: random.Random) -> Sample:
        """A sample of one task. Raises ValueError for an unknown task."""
        if task not in _TASKS:
            raise ValueError(f"unknown task {task!r}; there are {', '.join(_TASKS)}")
        for _ in range(200):
            sample = _TASKS[task](self, rng)
            if sample is not None:
                return sample
        raise ValueError(f"no scene found for task {task!r} at {self.size} px")

    def grounded_caption(self, scene: Scene, most: int, rng: random.Random) -> Sample:
        """Names, each followed by its place: `dog<012><200> red apple<100><040>`.

        The place follows the name at once, so looking for what was just said is all it takes. That
        is learnt long before "point to the dog", where the name lies further back.
        """
        things = rng.sample(scene.objects, min(most, len(scene.objects)))
        answer = " ".join(self.bank.name(o.key) + point_pieces(o.center, self.size) for o in things)
        return self.sample(scene, "grounded_caption", "name and place what you see", answer)

    def crowded_scene(self, rng: random.Random) -> Scene:
        """As many of 10 to 16 concepts as there is room for: half of the image shows things.

        Two are numbers: they differ in strokes alone, which takes more examples.
        """
        keys = self.keys(rng, rng.randint(10, 16), rng.sample(self._numbers, 2))
        return self._compose(rng, keys, crowd=True)

    def _compose(self, rng: random.Random, keys: Sequence[str], **options) -> Scene:
        options = {"least_px": self.least_px, "styles": self.styles, **options}
        return compose(rng, keys, self.bank, size=self.size, **options)

    def make_about(self, scene: Scene, count: int, rng: random.Random) -> list[Sample]:
        """Up to `count` different questions about one given scene."""
        asker = _SceneAsker(self, scene)
        kinds = ABOUT_CROWD if len(scene.objects) > 5 else ABOUT_ANY
        if len(scene.objects) == 1:
            kinds = [task for task in kinds if task not in ABOUT_SEVERAL]
        if len({o.key for o in scene.objects}) < len(scene.objects):
            kinds = ABOUT_REPEATED
        weights = [PACKED_WEIGHTS[task] for task in kinds]
        found: dict[str, Sample] = {}
        for task in rng.choices(kinds, weights, k=3 * count):
            sample = _TASKS[task](asker, rng)
            if sample is not None and len(found) < count:
                found.setdefault(sample.prompt, sample)
        return list(found.values())

    def key(self, rng: random.Random) -> str:
        """A concept: of the background with `background_share`, else robot or web-only."""
        if rng.random() < self.background_share:
            return rng.choice(self._background)
        return rng.choice(rng.choice(self._curated))

    def keys(self, rng: random.Random, count: int, fixed: Sequence[str] = ()) -> list[str]:
        """`count` different concepts; `fixed` come first and may repeat."""
        found = list(fixed)
        while len(found) < count:
            key = self.key(rng)
            if key not in found:
                found.append(key)
        return found

    def key_of_category(self, rng: random.Random, category: str) -> str:
        """A robot or web-only concept of one of `CATEGORY_NOUNS`."""
        return rng.choice(self._categories[category])

    def scene(self, rng: random.Random, low: int = 1, high: int = 5, **options) -> Scene:
        """Different concepts, `low` to `high` of them, but at most `max_pictures`."""
        low, high = min(low, self.max_pictures), min(high, self.max_pictures)
        return self._compose(rng, self.keys(rng, rng.randint(low, high)), **options)

    def scene_of(self, rng: random.Random, keys: Callable[[], list[str]]) -> Scene:
        """These concepts, in any order."""
        chosen = keys()
        return self._compose(rng, rng.sample(chosen, len(chosen)))

    def sample(
        self, scene: Scene, task: str, question: str, answer: str, language: str = "en"
    ) -> Sample:
        return Sample(scene, task, language, question_prompt(question), answer)


class _SceneAsker(QuestionMaker):
    """A maker whose scenes are always the given one."""

    def __init__(self, maker: QuestionMaker, scene: Scene):
        self.__dict__.update(maker.__dict__)
        self._scene = scene

    def scene(self, rng: random.Random, low: int = 1, high: int = 5, **options) -> Scene:
        return self._scene

    def scene_of(self, rng: random.Random, keys: Callable[[], list[str]]) -> Scene:
        return self._scene


def _point(maker: QuestionMaker, rng: random.Random) -> Sample:
    scene = maker.scene(rng)
    target = rng.choice(scene.objects)
    language = rng.choice(tuple(LANGUAGES)) if rng.random() < 0.12 else "en"
    name = maker.bank.name(target.key, language)
    if [maker.bank.name(o.key, language) for o in scene.objects].count(name) > 1:
        language, name = "en", maker.bank.name(target.key)  # English names are unique
    asked = rng.choice(POINT_PHRASES).format(f"the {name}")
    answer = point_pieces(target.center, maker.size)
    return maker.sample(scene, "point", asked, answer, language)


def _point_mat(maker: QuestionMaker, rng: random.Random) -> Sample | None:
    scene = maker.scene(rng, 1, 4, empty_mats=rng.choice((1, 2, 2, 3)))
    if not scene.mats:
        return None
    mat = rng.choice(scene.mats)
    asked = rng.choice(POINT_PHRASES).format(f"the {mat.color} mat")
    return maker.sample(scene, "point_mat", asked, point_pieces(mat.center, maker.size))


def _detect(maker: QuestionMaker, rng: random.Random) -> Sample:
    scene = maker.scene(rng, 1, 4)
    target = rng.choice(scene.objects)
    asked = rng.choice(("detect the {}", "box around the {}", "what is the box of the {}?"))
    answer = box_pieces(target.box, maker.size)
    return maker.sample(scene, "detect", asked.format(maker.bank.name(target.key)), answer)


def _offset(maker: QuestionMaker, rng: random.Random) -> Sample:
    scene = maker.scene(rng, 2, 4, empty_mats=rng.choice((0, 1, 2)))
    source = rng.choice(scene.objects)
    places = [(f"the {maker.bank.name(o.key)}", o.center) for o in scene.objects if o != source]
    places += [(f"the {m.color} mat", m.center) for m in scene.mats]
    name, target = rng.choice(places)
    asked = rng.choice(("offset from the {} to {}", "how far is it from the {} to {}?"))
    question = asked.format(maker.bank.name(source.key), name)
    return maker.sample(scene, "offset", question, offset_pieces(source.center, target, maker.size))


def _which(maker: QuestionMaker, rng: random.Random) -> Sample | None:
    scene = maker.scene(rng, 2, 4)
    source = rng.choice(scene.objects)
    others = [o for o in scene.objects if o != source]
    name = maker.bank.name(source.key)
    if rng.random() < 0.25 and len(others) > 1:
        nearest = nearest_to(source, others)
        if nearest is None:
            return None
        asked = rng.choice(("what is nearest to the {}?", "which one is next to the {}?"))
        return maker.sample(scene, "which", asked.format(name), maker.bank.name(nearest.key))
    where = rng.choice(RELATIONS)
    found = [o for o in others if relation(source, o, maker.size) == where]
    unclear = [o for o in others if relation(source, o, maker.size) is None]
    if len(found) != 1 or unclear:
        return None
    asked = rng.choice(("what is {} the {}?", "which picture is {} the {}?"))
    return maker.sample(scene, "which", asked.format(where, name), maker.bank.name(found[0].key))


def nearest_to(source: Placed, others: Sequence[Placed]) -> Placed | None:
    """The nearest by distance of centres, None unless the second is 1.3 times as far."""
    by_distance = sorted(others, key=lambda o: _distance(source, o))
    if len(by_distance) > 1:
        first, second = (_distance(source, o) for o in by_distance[:2])
        if second < 1.3 * first:
            return None
    return by_distance[0]


def _distance(a: Placed, b: Placed) -> float:
    return ((a.center[0] - b.center[0]) ** 2 + (a.center[1] - b.center[1]) ** 2) ** 0.5


def _relation_word(maker: QuestionMaker, rng: random.Random) -> Sample | None:
    """`where is the dog from the cat?` -> `left`."""
    scene = maker.scene(rng, 2, 4)
    source, target = rng.sample(scene.objects, 2)
    where = relation(source, target, maker.size)
    if where is None:
        return None
    question = f"is the {maker.bank.name(target.key)} left of, right of, above or below the "
    question += f"{maker.bank.name(source.key)}?"
    return maker.sample(scene, "relation", question, where.removesuffix(" of"))


def _name_at(maker: QuestionMaker, rng: random.Random) -> Sample:
    scene = maker.scene(rng, 2, 5)
    target = rng.choice(scene.objects)
    question = f"what is at {point_pieces(target.center, maker.size)}?"
    return maker.sample(scene, "name_at", question, maker.bank.name(target.key))


def _name(maker: QuestionMaker, rng: random.Random) -> Sample:
    scene = maker.scene(rng, 1, 1)
    asked = rng.choice(("what is this?", "what is in the picture?", "what do you see?"))
    return maker.sample(scene, "name", asked, maker.bank.name(scene.objects[0].key))


def _caption(maker: QuestionMaker, rng: random.Random) -> Sample:
    scene = maker.scene(rng, 1, 3)
    language = "en" if rng.random() < 0.3 else rng.choice(tuple(LANGUAGES))
    asked = rng.choice(("caption in {}", "describe in {}", "say in {} what you see"))
    left_to_right = sorted(scene.objects, key=lambda o: o.center[1])
    answer = ", ".join(maker.bank.name(o.key, language) for o in left_to_right)
    return maker.sample(scene, "caption", asked.format(LANGUAGES[language]), answer, language)


def _category(maker: QuestionMaker, rng: random.Random) -> Sample | None:
    """`which is a fruit?`, or points to the only fruit."""

    def keys() -> list[str]:
        category = rng.choice(tuple(CATEGORY_NOUNS))
        clashing = {category, *RELATED.get(category, ())}
        others = [k for k in maker.keys(rng, 4) if maker.bank.category(k) not in clashing]
        return [maker.key_of_category(rng, category), *others[: rng.randint(1, 4)]]

    scene = maker.scene_of(rng, keys)
    target = _only_one_of_its_category(maker, scene, rng)
    if target is None:
        return None
    noun = CATEGORY_NOUNS[maker.bank.category(target.key)]
    if rng.random() < 0.5:
        asked = rng.choice(("which is {}?", "which one is {}?")).format(noun)
        return maker.sample(scene, "category", asked, maker.bank.name(target.key))
    asked = rng.choice(POINT_PHRASES).format(f"the {noun.split(' ', 1)[1]}")
    answer = point_pieces(target.center, maker.size)
    return maker.sample(scene, "point_category", asked, answer)


def _only_one_of_its_category(
    maker: QuestionMaker, scene: Scene, rng: random.Random
) -> Placed | None:
    """An object whose category no other one has, or could be said to have."""
    categories = [maker.bank.category(o.key) for o in scene.objects]
    found = []
    for i, category in enumerate(categories):
        clashing = {category, *RELATED.get(category, ())}
        others = categories[:i] + categories[i + 1 :]
        if category in CATEGORY_NOUNS and not clashing.intersection(others) and others:
            found.append(scene.objects[i])
    return rng.choice(found) if found else None


def _color(maker: QuestionMaker, rng: random.Random) -> Sample | None:
    scene = maker.scene(rng, 1, 4, table=True)
    on_mat = [o for o in scene.objects if o.mat]
    on_tile = [o for o in scene.objects if o.tile and maker.bank.category(o.key) != "block"]
    if on_mat and rng.random() < 0.7:
        target = rng.choice(on_mat)
        name = maker.bank.name(target.key)
        if rng.random() < 0.5:
            question, answer = f"what colour is the mat under the {name}?", target.mat
        else:
            question, answer = f"what is on the {target.mat} mat?", name
    elif on_tile:
        target = rng.choice(on_tile)
        question = f"what colour is the tile with the {maker.bank.name(target.key)}?"
        answer = target.tile
    else:
        return None
    return maker.sample(scene, "color", question, answer)


def _count_all(maker: QuestionMaker, rng: random.Random) -> Sample | None:
    scene = maker.scene(rng, 1, 5)
    if any(maker.bank.category(o.key) == "block" for o in scene.objects):
        return None  # is a plain block a picture?
    question = "how many pictures are there?"
    return maker.sample(scene, "count_all", question, str(len(scene.objects)))


def _count(maker: QuestionMaker, rng: random.Random) -> Sample:
    def keys() -> list[str]:
        amount = rng.randint(1, 4)
        return maker.keys(rng, min(5, amount + rng.randint(0, 2)), [maker.key(rng)] * amount)

    scene = maker.scene_of(rng, keys)
    shown = [o.key for o in scene.objects]
    # Of what is there more often than once, if anything is, in most questions.
    several = [key for key in shown if shown.count(key) > 1]
    key = rng.choice(several if several and rng.random() < 0.8 else shown)
    question = f"how many times do you see the {maker.bank.name(key)}?"
    return maker.sample(scene, "count", question, str(shown.count(key)))


def _numbers(maker: QuestionMaker, rng: random.Random) -> Sample | None:
    """Sums, smallest and largest, or the number that is a given sum."""

    def keys() -> list[str]:
        amount = rng.choice((2, 2, 2, 3))
        return maker.keys(rng, amount + rng.randint(0, 2), rng.sample(maker._numbers, amount))

    scene = maker.scene_of(rng, keys)
    values = [v for o in scene.objects if (v := maker.bank.value(o.key)) is not None]
    if not 2 <= len(values) <= 3 or len(set(values)) < len(values):
        return None
    kind = rng.choice(("sum", "sum", "smallest", "largest"))
    if kind == "sum":
        asked = rng.choice(("what is the sum of the numbers?", "add the numbers"))
        return maker.sample(scene, "sum", asked, str(sum(values)))
    chosen = min(values) if kind == "smallest" else max(values)
    if rng.random() < 0.5:
        question = f"what is the {kind} number?"
        return maker.sample(scene, "number", question, str(chosen))
    question = rng.choice(POINT_PHRASES).format(f"the {kind} number")
    center = scene.objects[scene.index_of(f"number {chosen}")].center
    return maker.sample(scene, "point_number", question, point_pieces(center, maker.size))


def _present(maker: QuestionMaker, rng: random.Random) -> Sample:
    scene = maker.scene(rng, 1, 4)
    shown = {o.key for o in scene.objects}
    if rng.random() < 0.5:
        key, answer = rng.choice(scene.objects).key, "yes"
    else:
        key, answer = next(k for k in iter(lambda: maker.key(rng), None) if k not in shown), "no"
    asked = rng.choice(("is the {} here?", "do you see the {}?"))
    return maker.sample(scene, "present", asked.format(maker.bank.name(key)), answer)


_TASKS: dict[str, Callable[[QuestionMaker, random.Random], Sample | None]] = {
    "point": _point,
    "point_mat": _point_mat,
    "detect": _detect,
    "offset": _offset,
    "gripper": ask_gripper,
    "reach": ask_reach,
    "grip": ask_grip,
    "over": ask_over,
    "which": _which,
    "relation": _relation_word,
    "name_at": _name_at,
    "name": _name,
    "caption": _caption,
    "category": _category,
    "color": _color,
    "count": _count,
    "count_all": _count_all,
    "numbers": _numbers,
    "present": _present,
}
