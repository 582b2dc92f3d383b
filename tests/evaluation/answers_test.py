"""VQA's normalisation and accuracy, on cases worked by hand."""

from __future__ import annotations

import pytest

from vla_jax.evaluation.answers import commonest, normalize, vqa_accuracy
from vla_jax.text.prompts import is_caption_prompt
from vla_jax.types import Example, references


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Two dogs.", "2 dogs"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),  # number words up to ten
        ("The girl's hat", "girl's hat"),  # apostrophes stay
        ("2:50 pm", "2:50 pm"),  # and colons
        ("100,978", "100978"),
        ("red, white", "red white"),
        ("black-and-white", "black and white"),  # others become spaces
        ("yes/no", "yes no"),
        ("3.5 feet.", "3.5 feet"),
        ("dont know", "don't know"),
        ("It isnt", "it isn't"),
        ("isn’t", "isn't"),
        ("well", "well"),  # is a word
        ("50%", "50%"),
        ("a", "a"),  # nothing else
        ("an  Apple on the table", "apple on table"),
    ],
)
def test_normalize(answer, normal):
    assert normalize(answer) == normal
    assert normalize(normal) == normal


@pytest.mark.parametrize(
    ("same", "accuracy"),
    # k of 10 said it. Leaving out one of them leaves k - 1, one of the others k:
    # (k min((k - 1)/3, 1) + (10 - k) min(k/3, 1)) / 10.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_accuracy_over_ten_answers(same, accuracy):
    answers = ["Two"] * same + [f"other {n}" for n in range(10 - same)]
    assert vqa_accuracy("2.", answers) == pytest.approx(accuracy)


def test_accuracy_over_few_answers_is_whether_it_is_among_them():
    assert vqa_accuracy("the dog", ["Dog"]) == 1
    assert vqa_accuracy("dog", ["cat"]) == 0
    assert vqa_accuracy("dog", ["cat", "dog", "cow"]) == 1
    with pytest.raises(ValueError, match="at least one"):
        vqa_accuracy("dog", [])
    assert commonest(["cat", "Dog", "a dog"]) == "Dog"


def test_references_are_the_answers_to_the_first_prompt():
    def of(prompt, answer):
        return references(Example(images=(), prompt=prompt, answer=answer))

    assert of("how many?", "2") == ("2",)
    assert of("how many?", ("2", "two", "3")) == ("2", "two", "3")
    assert of(("how many?", "which color?"), ("2", "red")) == ("2",)
    # Two phrasings of two captions.
    assert of(("a", "b", "a", "b"), ("1", "1", "2", "2")) == ("1", "2")
    with pytest.raises(ValueError, match="no answer"):
        of("how many?", None)


def test_prompts_of_captions():
    for prompt in ("Q: caption in english A:", "Q: Caption in brazilian portuguese A:", "cap en"):
        assert is_caption_prompt(prompt), prompt
    for prompt in ("Q: what is the caption in english? A:", "captioned?", "Q: count A:"):
        assert not is_caption_prompt(prompt), prompt
