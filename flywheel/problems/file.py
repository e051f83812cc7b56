"""Problems of the user's own: a question, a reference, and a final answer that is compared exactly.

    question   Natalia sold clips to 48 of her friends ... How many altogether in April and May?
    reference  Natalia sold 48/2 = <<48/2=24>>24 clips in May.
               Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.
               #### 72

The reference is taught as it stands, calculator annotations and all: they write an equation out before its result.
Only a file's final answers decide what is right, never the way there. Files are read when problems are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from flywheel import sections
from flywheel.errors import ConfigError
from flywheel.problems import answers, numbers
from flywheel.problems.collection import Collection, explain, gather
from flywheel.problems.domain import Verdict
from flywheel.problems.math_check import MathChecker
from flywheel.problems.problem_rows import Reference, Unusable
from flywheel.records import Problem, Split

_PLACE = "{prompt}"
_SECONDS, _MEMORY_MB, _PROCESSES = 10.0, 2048, 2


class FileDomain:
    """The domain of a `problems` section with files. `seconds`, `memory_mb` and `processes` bound the checker `math`.

    Raises ConfigError where the section cannot be used; files are looked at by `problems`, `corpus` and `collection`.
    """

    name = "file"
    version = 1
    needs_reference = True

    def __init__(
        self,
        section: sections.Problems,
        seconds: float = _SECONDS,
        memory_mb: int = _MEMORY_MB,
        processes: int = _PROCESSES,
    ) -> None:
        problems = []
        if _PLACE not in section.template:
            problems.append(f"problems.template: {section.template!r} has no {_PLACE}, where the question goes")
        if section.messages_column is not None and not section.chat:
            problems.append("problems.messages_column: messages need a chat template; set problems.chat to true")
        if not section.step_end:
            problems.append("problems.step_end: got an empty text, expected what ends a step, such as a line end")
        if problems:
            raise ConfigError(problems)
        self.section = section
        self.step_end = section.step_end
        self._pattern = answers.compile_pattern(section.pattern)
        self._math = MathChecker(seconds, memory_mb, processes) if section.checker == "math" else None

    @cached_property
    def collection(self) -> Collection:
        """All that the files hold, and what was left out of it."""
        return gather(self.section, self.name, self.version, self._read_reference, self._refused)

    def problems(self, split: Split, count: int) -> list[Problem]:
        # Ids are digests, so that the first by id are a draw by hash.
        return self.collection.problems[split][:count]

    def why_empty(self, split: Split) -> str:
        """Where a split has no problem: what became of its rows."""
        return explain(self.collection, self.section, split)

    def prompt(self, problem: Problem) -> str:
        if "messages" in problem.payload:
            return "\n\n".join(message["content"] for message in problem.payload["messages"]) + "\n"
        return self.section.template.replace(_PLACE, problem.payload["prompt"])

    def messages(self, problem: Problem) -> list[dict[str, str]] | None:
        if not self.section.chat:
            return None
        asked = problem.payload.get("messages") or [{"role": "user", "content": problem.payload["prompt"]}]
        if self.section.system is None or asked[0]["role"] == "system":
            return [dict(message) for message in asked]
        return [{"role": "system", "content": self.section.system}, *(dict(message) for message in asked)]

    def check(self, problem: Problem, output: str) -> Verdict:
        found = answers.candidates(output, self.section.extractor, self._pattern)
        if self._math is not None:
            return self._check_math(self._math, problem.payload["answer"], found)
        final = answers.READERS[self.section.checker](found)
        if final.answer is None:
            return Verdict(False, None, final.reason)
        right = final.answer == self._canonical(problem.payload["answer"])
        return Verdict(right, final.answer, "right" if right else "another final answer than the reference's")

    def _check_math(self, checker: MathChecker, reference: str, found: list[answers.Candidate]) -> Verdict:
        if not found:
            return Verdict(False, None, "no final answer")
        verdicts = checker.check([(reference, candidate.text) for candidate in found])
        unsure = next((verdict for verdict in verdicts if verdict.unsure), None)
        if unsure is not None:
            return Verdict(False, None, unsure.reason, unsure.unsure)
        if len({verdict.answer for verdict in verdicts}) > 1 and not all(verdict.right for verdict in verdicts):
            return Verdict(False, None, "two final answers")
        last = verdicts[-1]
        return Verdict(last.right, last.answer, "right" if last.right else last.reason)

    def steps(self, output: str) -> list[str]:
        return [step.strip() for step in output.split(self.step_end) if step.strip()]

    def solutions(self, problem: Problem, count: int) -> list[str]:
        """The reference, where there is one that a student can learn from: the files know no other way."""
        reference = problem.reference
        if reference is None or count < 1 or not self.check(problem, reference).right:
            return []
        return [reference]

    def content(self, output: str, answer: str) -> str:
        # Two ways to the same number teach different things, however alike the answers.
        return "\n".join(" ".join(line.split()) for line in output.split("\n") if line.strip())

    def vocabulary(self) -> None:
        return None

    def corpus(self) -> Iterator[str]:
        for problem in self.problems("train", self.section.train):
            yield self.prompt(problem)
            if problem.reference is not None:
                yield problem.reference

    def _canonical(self, final: str) -> str:
        return final if self.section.checker == "number" else answers.same_text(final)

    def _read_reference(self, text: str) -> Reference:
        """A reference's final answer: all of it, where it is a number or a line without a mark; else where the
        extractor finds one."""
        found = answers.candidates(text, self.section.extractor, self._pattern)
        if self.section.checker == "number":
            value = numbers.read(text)
            if value is not None:
                return Reference(numbers.canonical(value), self._as_output(text, numbers.canonical(value)), 1)
            final = answers.number(found)
            if final.answer is None:
                raise Unusable(f"{self.section.answer_column}: {final.reason}")
            return Reference(final.answer, text, len(self.steps(text)))
        texts = {answers.same_text(candidate.text): candidate.text for candidate in found}
        if not texts and "\n" not in text:
            return Reference(text, self._as_output(text, text), 1)
        if len(texts) != 1:
            raise Unusable(f"{self.section.answer_column} has {'two final answers' if texts else 'no final answer'}")
        return Reference(next(iter(texts.values())), text, len(self.steps(text)))

    def _as_output(self, text: str, final: str) -> str | None:
        """A final answer that came without a way to it, as the shortest answer in which the extractor finds it."""
        for written in (text, f"#### {text}", f"\\boxed{{{text}}}"):
            found = answers.candidates(written, self.section.extractor, self._pattern)
            said = {answers.number(found).answer} if self.section.checker == "number" else {one.text for one in found}
            if said == {final}:
                return written
        return None

    def _refused(self, finals: list[str]) -> list[str | None]:
        if self._math is None:
            return [None] * len(finals)
        verdicts = self._math.check([(final, final) for final in finals])
        return [None if verdict.right else verdict.reason or "does not equal itself" for verdict in verdicts]
