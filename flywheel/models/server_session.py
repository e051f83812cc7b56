"""Prompts being continued by a served model: requests that share what shapes them go out as one call, each answer is
kept as it comes, and one that fails for good is a segment like any other, marked `failed`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from flywheel.compute import Cost
from flywheel.errors import ModelError
from flywheel.models.protocols import Extension, Sampling, Segment, SegmentStop
from flywheel.models.server_cache import AnswerCache
from flywheel.models.server_calls import Call, Endpoint, Growing, Node
from flywheel.models.server_client import Reply
from flywheel.models.server_requests import (
    Choice,
    Kind,
    Limits,
    Question,
    cut_at_step,
    read_choices,
    unusable,
)

_log = logging.getLogger("flywheel.server")
_MOST_AT_ONCE = 32
_ENDS: dict[str, SegmentStop] = {"stop": "eos", "length": "length"}


class ServerSession:
    """A session on questions; `failures` says, a line each, which requests failed for good and why."""

    def __init__(
        self,
        endpoints: Mapping[Kind, Endpoint],
        questions: Sequence[Question],
        step_end: str,
        cache: AnswerCache | None,
    ) -> None:
        self.failures: list[str] = []
        self._endpoints, self._questions, self._cache = endpoints, questions, cache
        self._step_end = step_end
        self._roots = [Node(number, "", 0, (), known=True) for number in range(len(questions))]
        self._nodes: list[Node] = []
        self._prompt_tokens = [0] * len(questions)
        self._tokens = 0
        self._policy = 0.0

    def extend(self, requests: Sequence[Extension], should_stop: Callable[[], None]) -> list[Segment]:
        """Go on from each request's node. Raises ModelError where the server refuses a request, or lacks what it takes;
        answers that came before are kept in the cache."""
        failed_before = len(self.failures)
        for request in requests:
            self._check(request)
        growing = [Growing(request, self._start(request)) for request in requests]
        while unfinished := [one for one in growing if one.stop is None]:
            self._round(unfinished, should_stop)
        if reasons := Counter(self.failures[failed_before:]):
            _log.warning("%d of %d answers failed: %s", reasons.total(), len(requests), "; ".join(reasons))
        return [self._finish(one) for one in growing]

    def text(self, node: int) -> str:
        return self._nodes[node].text

    def token_ids(self, node: int) -> tuple[int, ...]:
        """None are known."""
        return ()

    def tokens(self, node: int) -> int:
        """How many the whole answer has, as the server counted them."""
        return self._nodes[node].tokens

    def log_probabilities(self, node: int) -> tuple[float, ...]:
        """Of each token of the whole answer; empty where one of them is not known."""
        return self._nodes[node].log_probabilities if self._nodes[node].known else ()

    def prompt_flops(self, prompt: int) -> float:
        """FLOPs of running a prompt once, from the tokens that the server counted when it was first asked."""
        return self._endpoint(prompt).flops_a_token * self._prompt_tokens[prompt]

    def release(self, prompt: int) -> None:
        """Nothing is kept for a prompt but its texts, which stay."""

    def cost(self) -> Cost:
        """Of every answer, a kept one as if it were drawn now: it was paid for once. Prompts count once each, as if the
        server kept what it had read of them."""
        return Cost(
            policy=self._policy,
            prefill=sum(self.prompt_flops(number) for number in range(len(self._questions))),
            tokens=self._tokens,
        )

    def _endpoint(self, prompt: int) -> Endpoint:
        return self._endpoints[self._questions[prompt].kind]

    def _start(self, request: Extension) -> Node:
        return self._roots[request.prompt] if request.parent is None else self._nodes[request.parent]

    def _check(self, request: Extension) -> None:
        """Raise ModelError where the server lacks what a request takes: another draw than asked for is no answer."""
        endpoint = self._endpoint(request.prompt)
        features, address = endpoint.features, endpoint.client.address
        if request.sampling.top_k is not None and request.sampling.temperature is not None and not features.top_k:
            raise ModelError(
                f"the server at {address} does not draw from the likeliest k tokens (top_k {request.sampling.top_k}); "
                "set generate.top_k to null"
            )
        if not features.continues and (request.one_step or self._start(request).text):
            raise ModelError(
                f"the server at {address} cannot go on from a partial chat answer (continue_final_message), which "
                "searches by steps stand on; choose searcher best_of_n or adaptive, set problems.chat to false where "
                "it has a completions endpoint, or serve the model by vLLM or SGLang"
            )

    def _round(self, unfinished: Sequence[Growing], should_stop: Callable[[], None]) -> None:
        """One request's worth of growth for each."""
        groups: dict[tuple[Question, Limits], list[Growing]] = {}
        for one in unfinished:
            question = replace(self._questions[one.request.prompt], prefix=one.start.text + one.text)
            stop = self._step_end if one.request.one_step else None
            limits = Limits(one.request.sampling, one.request.max_new_tokens - one.tokens, stop)
            groups.setdefault((question, limits), []).append(one)
        calls = []
        for (question, limits), group in groups.items():
            endpoint = self._endpoints[question.kind]
            together = _MOST_AT_ONCE if endpoint.features.many else 1
            together = len(group) if limits.sampling.temperature is None else together
            for first in range(0, len(group), together):
                part = group[first : first + together]
                calls.append(Call(endpoint, question, limits, part, list(range(len(part)))))
        for call in calls:
            self._recall(call)
        while waiting := [call for call in calls if call.missing]:
            self._ask(waiting, should_stop)

    def _recall(self, call: Call) -> None:
        """Take the answers that were kept."""
        if self._cache is None:
            return
        kept = {place: self._cache.get(call.address(place)) for place in call.missing[: call.wanted]}
        found = {place: Choice.from_json(answer) for place, answer in kept.items() if answer is not None}
        self._hand_out(call, found)

    def _ask(self, calls: Sequence[Call], should_stop: Callable[[], None]) -> None:
        """Send what is missing. A server that gives fewer answers than it was asked for is asked again for the rest."""

        def told(number: int, reply: Reply) -> None:
            call = calls[number]
            if reply.refused:
                raise ModelError(
                    f"the server at {call.endpoint.client.address} refuses a request for {call.endpoint.model} "
                    f"({reply.problem}); see whether its limits, such as the length of its context, fit the params"
                )
            if reply.body is None:
                self._fail(call, reply.problem)
                return
            choices = read_choices(reply.body, call.wanted)
            found = dict(zip(call.missing, choices, strict=False))
            if self._cache is not None:
                for place, choice in found.items():
                    if choice.finish in _ENDS:
                        self._cache.put(call.address(place), choice.to_json())
            self._hand_out(call, found)

        calls[0].endpoint.client.post_all([call.post() for call in calls], unusable, told, should_stop)

    def _fail(self, call: Call, reason: str) -> None:
        for place in call.missing:
            self._give_up(call.group[place], reason)
        call.missing = []

    def _give_up(self, one: Growing, reason: str) -> None:
        one.stop = "failed"
        self.failures.append(reason)

    def _hand_out(self, call: Call, found: Mapping[int, Choice]) -> None:
        """Let the segments at these places grow by their answers."""
        for choice in found.values():
            self._count(call, choice)
        greedy = call.limits.sampling.temperature is None
        places = dict.fromkeys(call.missing, found[call.missing[0]]) if greedy and found else found
        for place, choice in places.items():
            self._grow(call.group[place], call, choice)
        call.missing = [place for place in call.missing if place not in places]

    def _count(self, call: Call, choice: Choice) -> None:
        self._tokens += choice.tokens
        self._policy += choice.tokens * call.endpoint.flops_a_token
        if not call.question.prefix:
            self._prompt_tokens[call.group[0].request.prompt] = choice.prompt_tokens

    def _grow(self, one: Growing, call: Call, choice: Choice) -> None:
        """Put an answer to what there is of a segment, and say how it ended, if it did."""
        ended = _ENDS.get(choice.finish)
        if ended is None:
            self._give_up(one, f"an answer ended for the unknown reason {choice.finish or 'null'}")
            return
        step_end = call.limits.stop
        if step_end is not None:
            # The stop string is in the text, or was taken off it; a step that is blank so far is gone on with.
            begun = call.question.prefix.rpartition(step_end)[2]
            choice, whole = cut_at_step(choice, step_end, begun)
            if whole:
                ended = "step"
            elif choice.matched == step_end:
                choice = replace(choice, text=choice.text + step_end)
                ended = "step" if (begun + choice.text).replace(step_end, "").strip() else None
            elif ended == "eos" and call.endpoint.features.stops == "kept" and step_end in begun + choice.text:
                # Its last token may reach beyond the stop string.
                ended = None
        one.text += choice.text
        one.tokens += choice.tokens
        one.known = one.known and bool(choice.log_probabilities) and _is_drawn_from(one.request.sampling)
        one.log_probabilities += choice.log_probabilities
        one.pieces += 1
        # What goes on after a blank step counts against the segment's limit; one token at least a request.
        one.tokens = max(one.tokens, one.pieces)
        if ended is None and one.tokens >= one.request.max_new_tokens:
            ended = "length"
        one.stop = ended

    def _finish(self, one: Growing) -> Segment:
        """The node that a segment ends in."""
        assert one.stop is not None
        start, request = one.start, one.request
        if one.stop == "failed":
            self._nodes.append(start)
            return Segment(len(self._nodes) - 1, "failed", 0, None, 0.0)
        known = one.known and one.tokens > 0
        self._nodes.append(
            Node(
                request.prompt,
                start.text + one.text,
                start.tokens + one.tokens,
                start.log_probabilities + one.log_probabilities,
                start.known and known,
            )
        )
        flops = one.tokens * self._endpoint(request.prompt).flops_a_token
        log_probability = sum(one.log_probabilities) if known else None
        return Segment(len(self._nodes) - 1, one.stop, one.tokens, log_probability, flops)


def _is_drawn_from(sampling: Sampling) -> bool:
    """Whether the log-probabilities that servers give, of the model's own distribution, are of the one drawn from."""
    return sampling.temperature is None or (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, None)
