"""A model behind a server of the OpenAI protocol (vLLM, SGLang, `transformers serve`) as searchers see it.

A server takes text and gives text: token ids are not known, and there are no weights to hash, so its snapshot names
what the server declares and is not verified. Answers are drawn by the server's own noise: a repeated run agrees in
distribution, and exactly where its answers were kept (`server_cache`). Texts are joined as they are: a prefix is
tokenised anew by the server when it is gone on from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flywheel.errors import ModelError
from flywheel.models import server_features
from flywheel.models.server_cache import AnswerCache
from flywheel.models.server_calls import Endpoint
from flywheel.models.server_client import Client
from flywheel.models.server_requests import Features, Kind, Question
from flywheel.models.server_session import ServerSession
from flywheel.records import canonical_json, digest

_log = logging.getLogger("flywheel.server")


def connect(
    address: str,
    model: str | None = None,
    cache_folder: Path | None = None,
    requests_at_once: int = 8,
    seconds: float = 300.0,
    retries: int = 5,
) -> ServerSampler:
    """The model of a server, by the address its endpoints lie below; None takes the only one it has.

    `cache_folder` keeps its answers; None keeps none. `seconds` bounds one request, `retries` is how often it is sent
    again. Raises ModelError where the server cannot be reached, or does not have the model.
    """
    client = Client(address, requests_at_once, seconds, retries)
    entry, notes = _choose(client, model)
    cache = AnswerCache(cache_folder) if cache_folder is not None else None
    return ServerSampler(client, entry, cache, notes)


class ServerSampler:
    """A served model. `notes` says, a line each, what the server cannot do and what that means; each is logged once."""

    verified = False
    """Nobody can know which weights answer."""

    def __init__(self, client: Client, entry: dict[str, Any], cache: AnswerCache | None, notes: Sequence[str]) -> None:
        """`entry` is the model's entry in the server's list, of which only `id` must be there."""
        self.address = client.address
        self.model: str = entry["id"]
        self.notes: list[str] = []
        self._client, self._cache = client, cache
        self._revision = _revision(entry)
        self._parameters = _parameters(entry)
        self._endpoints: dict[Kind, Endpoint | None] = {}
        self._refusals: dict[Kind, str] = {}
        self._chats: set[str] = set()
        for note in notes:
            self._note(note)
        if not self._parameters:
            self._note("the size of its model is not known: its work counts as 0 FLOPs")
        self._text_kind: Kind = "completions"
        if self._endpoint("completions") is None:
            self._text_kind = "chat"
            if self._endpoint("chat") is None:
                raise ModelError(
                    f"the server at {self.address} answers for {self.model} neither at /completions "
                    f"({self._refusals['completions']}) nor at /chat/completions ({self._refusals['chat']}); "
                    "see whether the address and the model's name are right"
                )
            self._note("it has no completions endpoint: prompts are put as the user's message of a chat")
        settings = {"prompts": self._text_kind}
        self.snapshot = digest("server", self.model, self._revision, settings)
        self.tokenizer_id = digest("server", self.model, self._revision)

    def prompt_flops(self, tokens: int) -> float:
        """FLOPs of running a prompt of so many tokens once; 0 where the server does not say how large its model is.
        Attention is left out, since the server does not show the model's shape."""
        return 2.0 * self._parameters * tokens

    def encode_prompt(self, text: str) -> list[int]:
        """Nothing: the server's token ids are not known, and the text is what it is sent."""
        return []

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> tuple[str, list[int]]:
        """The messages as canonical JSON, which stands for them in `open` and in the record; the server puts them into
        its model's chat template. Raises ModelError where it has no chat endpoint."""
        if self._endpoint("chat") is None:
            raise ModelError(
                f"the server at {self.address} has no chat endpoint for {self.model} ({self._refusals['chat']}); "
                "set problems.chat to false, or serve a model with a chat template"
            )
        rendering = canonical_json([dict(message) for message in messages])
        self._chats.add(rendering)
        return rendering, []

    def decode(self, ids: Iterable[int]) -> str:
        """The text of no tokens. Raises ModelError for others: they cannot be this model's."""
        if list(ids):
            raise ModelError(f"token ids of {self.model} are not known: the server at {self.address} gives text only")
        return ""

    def open(self, prompts: Sequence[Sequence[int]], texts: Sequence[str], step_end: str) -> ServerSession:
        """A session on `texts`; `prompts`, token ids, are not used. A text that `encode_chat` gave stands for its
        messages."""
        if len(prompts) != len(texts):
            raise ValueError(f"got {len(prompts)} prompts and {len(texts)} texts; expected one text a prompt")
        asked = [self._question(text) for text in texts]
        kinds = {question.kind for question in asked}
        endpoints = {kind: endpoint for kind, endpoint in self._endpoints.items() if endpoint is not None}
        assert kinds <= set(endpoints), "an endpoint is found before a question is made for it"
        return ServerSession(endpoints, asked, step_end, self._cache)

    def _question(self, text: str) -> Question:
        if text in self._chats:
            return Question("chat", text)
        if self._text_kind == "completions":
            return Question("completions", text)
        return Question("chat", canonical_json([{"role": "user", "content": text}]))

    def _endpoint(self, kind: Kind) -> Endpoint | None:
        """What is known of an endpoint, found out when it is first wanted."""
        if kind not in self._endpoints:
            found = server_features.find(self._client, self.model, kind)
            self._refusals[kind] = found.refusal
            for note in found.notes:
                self._note(note)
            self._endpoints[kind] = self._made(found.features) if found.features is not None else None
        return self._endpoints[kind]

    def _made(self, features: Features) -> Endpoint:
        return Endpoint(self._client, self.model, self._revision, features, 2.0 * self._parameters)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
            _log.info("server %s, %s: %s", self.address, self.model, note)


def _choose(client: Client, model: str | None) -> tuple[dict[str, Any], list[str]]:
    """The model's entry in the server's list, and what there is to say about it."""
    reply = client.get("/models")
    if reply.status is None:
        raise ModelError(
            f"the server at {client.address} cannot be reached ({reply.problem}); start it, or set generate.teacher to "
            "where it is"
        )
    if reply.status in {401, 403}:
        raise ModelError(
            f"the server at {client.address} refuses the key ({reply.problem}); set OPENAI_API_KEY in the environment"
        )
    listed = reply.body.get("data") if reply.body is not None else None
    entries = {
        entry["id"]: entry
        for entry in (listed if isinstance(listed, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("id"), str)
    }
    names = ", ".join(sorted(entries)) or "none"
    if model is not None:
        if model in entries:
            return entries[model], []
        # Some list only what they have loaded, or what lies in the hub's cache, and take other names all the same.
        return {"id": model}, [
            f"its list of models ({reply.problem or names}) lacks {model}, which was asked all the same"
        ]
    if not entries and reply.body is None:
        raise ModelError(
            f"the server at {client.address} lists no models ({reply.problem}); the address usually ends in /v1; "
            "or name the model in generate.teacher_model"
        )
    if len(entries) != 1:
        raise ModelError(
            f"the server at {client.address} has {len(entries)} models: {names}; name one in generate.teacher_model"
        )
    return next(iter(entries.values())), []


def _revision(entry: dict[str, Any]) -> str | None:
    """The model's revision, where the server says one."""
    said = entry.get("revision")
    return said if isinstance(said, str) else None


def _parameters(entry: dict[str, Any]) -> int:
    """How many parameters the server says its model has (llama.cpp: meta.n_params); 0 where it does not."""
    meta = entry.get("meta")
    said = [
        entry.get("parameters"),
        entry.get("num_parameters"),
        meta.get("n_params") if isinstance(meta, dict) else None,
    ]
    return next((value for value in said if isinstance(value, int) and value > 0), 0)
