"""Scorers: what turns a model and rows into one score an example. A fitness file is data plus one of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from evomerge.evaluation.data import Data, Row
from evomerge.evaluation.model import Model
from evomerge.types import Split

Text = str | Callable[[Row], str]


def exact_match(answer: str, reference: str) -> float:
    """Return 1.0 if the texts agree but for case and surrounding space or full stop, else 0.0."""
    return float(plain(answer) == plain(reference))


def plain(text: str) -> str:
    """Return the form in which answers are compared: without case, surrounding space and full stop."""
    return text.strip().rstrip(".").strip().casefold()


def render(text: Text, row: Row) -> str:
    """Fill a template (``"Capital of {country}:"``) from a row, or call a function with it."""
    return text(row) if callable(text) else text.format_map(row)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Generate greedily, compare with the reference. An answer that cannot be parsed scores 0.

    Attributes:
        data: the rows.
        prompt: template or function of a row.
        answer: the reference, template or function of a row; never shown to the model.
        max_new_tokens: the most tokens of an answer.
        stop: strings that end an answer.
        parse: takes the generated text to the answer in it, or ``None`` if there is none.
        match: ``(answer, reference) -> score``, by default exact match.
    """

    data: Data
    prompt: Text
    answer: Text
    max_new_tokens: int = 16
    stop: tuple[str, ...] = ("\n",)
    parse: Callable[[str], str | None] = field(default=str.strip)
    match: Callable[[str, str], float] = exact_match

    def __call__(self, model: Model, split: Split) -> list[float]:
        """Return one score an example."""
        texts = model.generate(self.prompts(split), max_new_tokens=self.max_new_tokens, stop=self.stop)
        return self.grade(texts, split)

    def prompts(self, split: Split) -> list[str]:
        """Return the prompt of every row."""
        return [render(self.prompt, row) for row in self.data.rows(split)]

    def grade(self, texts: Sequence[str], split: Split) -> list[float]:
        """Return one score for each generated text, in the order of the rows."""
        return self.judge(self.answers(texts), split)

    def answers(self, texts: Sequence[str]) -> list[str | None]:
        """Return the answer in each generated text, ``None`` where there is none."""
        return [self.parse(text) for text in texts]

    def judge(self, answers: Sequence[str | None], split: Split) -> list[float]:
        """Return one score for each answer, in the order of the rows."""
        return [
            0.0 if answer is None else self.match(answer, render(self.answer, row))
            for answer, row in zip(answers, self.data.rows(split), strict=True)
        ]

    def pairs(self, split: Split) -> list[tuple[str, str]]:
        """Return (prompt, reference) of every row: what an expert of this task is trained on."""
        return [(render(self.prompt, row), render(self.answer, row)) for row in self.data.rows(split)]


def likeliest(values: Sequence[float]) -> int:
    """Return the index of the greatest value, the first of equals."""
    return values.index(max(values))


@dataclass(frozen=True, kw_only=True)
class MultipleChoice:
    """Choose the option with the highest log-likelihood after the prompt.

    Attributes:
        data: the rows.
        prompt: template or function of a row.
        options: function of a row: the options as they would continue the prompt.
        answer: function of a row: the index of the right option.
        normalize: divide each option's log-likelihood by its length in characters without the space before it
            (lm-evaluation-harness' ``acc_norm``).
    """

    data: Data
    prompt: Text
    options: Callable[[Row], Sequence[str]]
    answer: Callable[[Row], int]
    normalize: bool = False

    def __call__(self, model: Model, split: Split) -> list[float]:
        """Return 1.0 or 0.0 an example."""
        return self.judge([likeliest(values) for values in self.likelihoods(model, split)], split)

    def likelihoods(self, model: Model, split: Split) -> list[list[float]]:
        """Return the log-likelihood of every option of every row, divided by its length if ``normalize``."""
        rows = self.data.rows(split)
        options = [list(self.options(row)) for row in rows]
        pairs = [(render(self.prompt, row), text) for row, texts in zip(rows, options, strict=True) for text in texts]
        values = iter(model.loglikelihood(pairs))
        return [
            [next(values) / (max(len(text.lstrip()), 1) if self.normalize else 1) for text in texts]
            for texts in options
        ]

    def judge(self, chosen: Sequence[int], split: Split) -> list[float]:
        """Return 1.0 or 0.0 for the index of each chosen option, in the order of the rows."""
        return [float(index == self.answer(row)) for index, row in zip(chosen, self.data.rows(split), strict=True)]

    def pairs(self, split: Split) -> list[tuple[str, str]]:
        """Return (prompt, right option) of every row: what an expert of this task is trained on."""
        return [(render(self.prompt, row), self.options(row)[self.answer(row)]) for row in self.data.rows(split)]


def generate_together(model: Model, scorers: Mapping[str, Generation], split: Split) -> dict[str, list[str]]:
    """Return the texts of every scorer, by name; scorers with the same stop strings are generated together.

    A step of decoding costs nearly as much for few rows as for many.
    """
    texts: dict[str, list[str]] = {}
    for stop in sorted({tuple(scorer.stop) for scorer in scorers.values()}):
        asked = {name: scorer.prompts(split) for name, scorer in scorers.items() if tuple(scorer.stop) == stop}
        limits = [scorers[name].max_new_tokens for name, own in asked.items() for _ in own]
        prompts = [prompt for own in asked.values() for prompt in own]
        found = iter(model.generate(prompts, max_new_tokens=limits, stop=stop))
        texts |= {name: [next(found) for _ in own] for name, own in asked.items()}
    return texts
