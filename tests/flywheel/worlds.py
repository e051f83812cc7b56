"""Tiny worlds with a known value: a "model" that is a table of next-token probabilities, and rewards that are tables.

A world knows every answer it can give and how likely each is, so that what a search finds can be held against all there
is. Its session keeps what it was asked, and is strict: nothing is asked of a prompt that was released.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from flywheel.compute import Cost
from flywheel.errors import ModelError
from flywheel.problems.countdown import Countdown
from flywheel.records import Problem
from flywheel.rewards.reward import Answer, Judgement, StepScores
from flywheel.search.protocols import Extension, Segment, SegmentStop
from flywheel.seeds import generator, uniform

END = ""
"""The end token."""
Table = Mapping[str, Mapping[str, float]]
"""Of each text so far the probabilities of the next token; a text that is not there ends."""


class Lines:
    """Steps are lines; a problem's prompt is its id up to a `/`: two problems can be asked in the same words."""

    step_end = "\n"

    def prompt(self, problem: Problem) -> str:
        return problem.problem_id.split("/")[0]

    def messages(self, problem: Problem) -> None:
        return None

    def steps(self, output: str) -> list[str]:
        return [line.strip() for line in output.split("\n") if line.strip()]


def problem(name: str) -> Problem:
    return Problem(name, "world", 1, "train", 1.0, name, {})


class World:
    """A sampler: for each prompt a table. Running a token takes a FLOP."""

    snapshot = "world"
    tokenizer_id = "letters"

    def __init__(self, tables: Mapping[str, Table], says_log_probability: bool = True) -> None:
        self.tables = tables
        self.says_log_probability = says_log_probability
        self.fails: Callable[[Extension], bool] = lambda request: False
        self.sessions: list[WorldSession] = []
        words = {word for table in tables.values() for row in table.values() for word in row}
        self.words = [END, *sorted(words - {END})]

    def prompt_flops(self, tokens: int) -> float:
        return float(tokens)

    def encode_prompt(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> tuple[str, list[int]]:
        raise ModelError("a world has no chat template")

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.words[number] for number in ids)

    def open(self, prompts: Sequence[Sequence[int]], texts: Sequence[str], step_end: str) -> WorldSession:
        self.sessions.append(WorldSession(self, texts, step_end))
        return self.sessions[-1]

    def answers(self, prompt: str, text: str = "", probability: float = 1.0) -> Iterator[tuple[str, float]]:
        """Every answer to a prompt and its probability, by enumeration."""
        for word, chance in self.tables[prompt].get(text, {END: 1.0}).items():
            if word == END:
                yield text, probability * chance
            else:
                yield from self.answers(prompt, text + word, probability * chance)


@dataclass(frozen=True)
class Place:
    prompt: int
    tokens: tuple[str, ...]
    log_probabilities: tuple[float, ...]


@dataclass
class WorldSession:
    world: World
    texts: Sequence[str]
    step_end: str
    asked: list[list[Extension]] = field(default_factory=list)
    """The requests of each call of `extend`."""
    places: list[Place] = field(default_factory=list)
    released: set[int] = field(default_factory=set)
    drawn: int = 0

    def extend(self, requests: Sequence[Extension], should_stop: Callable[[], None]) -> list[Segment]:
        assert requests, "nothing to do is not asked for"
        self.asked.append(list(requests))
        segments = []
        for request in requests:
            should_stop()
            assert request.prompt not in self.released, "a released prompt is not gone on from"
            assert request.max_new_tokens > 0, "room is left for a token"
            segments.append(self._one(request))
        return segments

    def _one(self, request: Extension) -> Segment:
        at = Place(request.prompt, (), ()) if request.parent is None else self.places[request.parent]
        assert at.prompt == request.prompt, "a node belongs to its own prompt"
        assert END not in at.tokens, "an ended answer is not gone on from"
        if self.world.fails(request):
            return self._segment(at, at, "failed")
        table, tokens, logs = self.world.tables[self.texts[request.prompt]], list(at.tokens), list(at.log_probabilities)
        step = "".join(tokens).rpartition(self.step_end)[2]
        for _ in range(request.max_new_tokens):
            word, log = draw(table.get("".join(tokens), {END: 1.0}), request, len(tokens))
            tokens.append(word)
            logs.append(log)
            step += word
            if word == END or (request.one_step and step.endswith(self.step_end) and step.strip()):
                break
        to = Place(request.prompt, tuple(tokens), tuple(logs))
        stop_reason: SegmentStop = "length"
        if word == END:
            stop_reason = "eos"
        elif request.one_step and step.endswith(self.step_end):
            stop_reason = "step"
        return self._segment(at, to, stop_reason)

    def _segment(self, at: Place, to: Place, stop_reason: SegmentStop) -> Segment:
        self.places.append(to)
        taken = len(to.tokens) - len(at.tokens)
        self.drawn += taken
        log = sum(to.log_probabilities[len(at.tokens) :]) if self.world.says_log_probability else None
        return Segment(len(self.places) - 1, stop_reason, taken, log, float(taken))

    def text(self, node: int) -> str:
        return "".join(self.places[node].tokens)

    def token_ids(self, node: int) -> tuple[int, ...]:
        return tuple(self.world.words.index(word) for word in self.places[node].tokens)

    def tokens(self, node: int) -> int:
        return len(self.places[node].tokens)

    def log_probabilities(self, node: int) -> tuple[float, ...]:
        return self.places[node].log_probabilities if self.world.says_log_probability else ()

    def prompt_flops(self, prompt: int) -> float:
        return float(len(self.texts[prompt]))

    def release(self, prompt: int) -> None:
        self.released.add(prompt)

    def cost(self) -> Cost:
        return Cost(policy=float(self.drawn), prefill=float(sum(map(len, self.texts))), tokens=self.drawn)


def draw(row: Mapping[str, float], request: Extension, position: int) -> tuple[str, float]:
    """The next token, and its log-probability, by the inverse of the cumulative distribution."""
    words = list(row)
    if request.sampling.temperature is None:
        best = max(words, key=lambda word: row[word])
        return best, math.log(row[best])
    heat = np.array([row[word] for word in words]) ** (1.0 / request.sampling.temperature)
    cumulative = np.cumsum(heat / heat.sum())
    place = uniform(np.array([request.key], dtype=np.uint64), position)[0]
    chosen = min(int(np.searchsorted(cumulative, place, side="right")), len(words) - 1)
    return words[chosen], float(np.log(heat[chosen] / heat.sum()))


class Scored:
    """A reward from tables: of whole answers, and of the lines so far. Judging an answer takes 5 FLOPs, scoring 3."""

    name = "scored"
    needs_reference = False

    def __init__(
        self,
        answers: Callable[[str], float | None],
        steps: Callable[[Sequence[str]], float] | None = None,
        *,
        verifies: bool = False,
        votes: bool = False,
    ) -> None:
        self._answers, self._steps = answers, steps
        self.verifies, self.votes, self.gives_steps = verifies, votes, steps is not None
        self.judged: list[list[tuple[Problem, list[str]]]] = []
        self.scored: list[list[tuple[Problem, tuple[str, ...]]]] = []

    def judge(
        self, groups: Sequence[tuple[Problem, Sequence[Answer]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[list[Judgement]]:
        should_stop()
        self.judged.append([(one, [answer.output for answer in answers]) for one, answers in groups])
        return [[self._judgement(answer) for answer in answers] for _, answers in groups]

    def _judgement(self, answer: Answer) -> Judgement:
        if answer.stop_reason == "failed":
            return Judgement(None, "failed", None, 5.0)
        if answer.stop_reason == "length":
            return Judgement(0.0, "truncated", None, 5.0)
        value = self._answers(answer.output)
        return Judgement(value, "timeout" if value is None else "judged", answer.output, 5.0)

    def score_steps(
        self, partial: Sequence[tuple[Problem, Sequence[str]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[StepScores]:
        assert self._steps is not None
        should_stop()
        self.scored.append([(one, tuple(steps)) for one, steps in partial])
        return [
            StepScores(tuple(self._steps(steps[: number + 1]) for number in range(len(steps))), 3.0)
            for _, steps in partial
        ]

    def take_padding(self) -> float:
        return 0.0


def forest(seed: int, depth: int, branches: int, early: float = 0.0) -> Table:
    """A random table: `depth` lines of one letter, then the end; `early` is the chance to end after any line. No letter
    is less likely than half of an even share."""
    random = generator(seed, "forest")
    table: dict[str, dict[str, float]] = {}

    def grow(text: str, left: int) -> None:
        if left == 0:
            table[text] = {END: 1.0}
            return
        shares = (random.dirichlet(np.ones(branches)) + 1.0 / branches) / 2 * (1.0 - (early if text else 0.0))
        table[text] = {f"{chr(97 + number)}\n": float(share) for number, share in enumerate(shares)}
        if text and early:
            table[text][END] = early
        for word in [word for word in table[text] if word != END]:
            grow(text + word, left - 1)

    grow("", depth)
    return table


def countdown_world(countdown: Countdown, problems: Sequence[Problem]) -> World:
    """A model of Countdown that knows the form and guesses: it draws a hand's first line among eight, of which one is a
    solution's, and then a second line among four for what is left."""
    tables = {}
    for one in problems:
        random = generator(0, "countdown world", one.problem_id)
        numbers, target = list(one.payload["numbers"]), one.payload["target"]
        first, second = countdown.solutions(one, 1)[0].split("\n")
        table: dict[str, dict[str, float]] = {"": {f"{first}\n": 1 / 8}}
        while len(table[""]) < 8:
            a, b = (int(number) for number in random.choice(numbers, 2, replace=False))
            table[""].setdefault(f"{a} + {b} = {a + b}\n" if random.random() < 0.5 else f"{a} * {b} = {a * b}\n", 1 / 8)
            if len(table[""]) < 8:
                table[""].setdefault(f"{a} + {b} = {int(random.integers(1, 40))}\n", 1 / 8)
        for line in table[""]:
            left = [*numbers, int(line.split()[-1])]
            for used in (line.split()[0], line.split()[2]):
                if int(used) in left[:-1]:
                    left.remove(int(used))
            a, b = left[-1], left[0]
            lines = {f"{a} + {b} = {a + b}", f"{a} * {b} = {a * b}", f"{a} + {b} = {target}", f"{a} -"}
            table[line] = dict.fromkeys(sorted(lines | ({second} if line == f"{first}\n" else set())), 0.2)
            table[line] = {text: 1 / len(table[line]) for text in table[line]}
        tables[countdown.prompt(one)] = table
    return World(tables)
