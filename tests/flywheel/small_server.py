"""A small real HTTP server on loopback that speaks one dialect or another of the OpenAI protocol, and misbehaves on
demand.

Its model draws each letter from a digest of the whole text so far (and of the seed, where it is not greedy), a letter a
token, so that what it must answer can be computed here without it, also across requests that go on from a prefix.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from flywheel.models import server
from flywheel.models.protocols import Extension, Sampling
from flywheel.models.server import ServerSampler
from flywheel.records import digest

END = "$"
LETTERS = "0123456789+=\n\n\n" + END


@dataclass
class Dialect:
    """What the server can do; by default all that vLLM can."""

    endpoints: tuple[str, ...] = ("/completions", "/chat/completions")
    many: bool = True
    same_for_all: bool = False
    log_probabilities: bool = True
    seed: bool = True
    samples: bool = True
    extra_fields: tuple[str, ...] = ("top_k", "min_p", "repetition_penalty")
    top_k: bool = True
    strict: bool = False
    """Refuse fields that are not known, instead of ignoring them."""
    stop: str = "stop_reason"
    """stop_reason, matched_stop: named so in the choice, and taken off; kept: left in the text, one letter over; bare:
    taken off and not named."""
    continues: bool = True
    usage: bool = True
    native: bool = False
    """generation_config, as in transformers serve."""
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "small"}])
    key: str | None = None


Fault = Callable[[BaseHTTPRequestHandler], bool]
"""Misbehaves on a request and returns True, or lets it pass."""


def letters(text: str, seed: Any, tokens: int) -> tuple[str, str]:
    """What the model says after a text, and its finish_reason. A seed of None is greedy."""
    said = ""
    for _ in range(tokens):
        place = int(digest(text + said, seed)[:8], 16) % len(LETTERS)
        if LETTERS[place] == END:
            return said, "stop"
        said += LETTERS[place]
    return said, "length"


def rendered(messages: list[dict[str, str]], open_ended: bool) -> str:
    """The chat template."""
    text = "".join(f"<{message['role']}>{message['content']}</>" for message in messages)
    return text[: -len("</>")] if open_ended else text + "<assistant>"


class SmallServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.fault: Fault | None = None
        self.seen: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.inside, self.most_inside = 0, 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: SmallServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(raw))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        self.server.keys.append(self.headers.get("Authorization"))
        if not self._may():
            return
        if self.path == "/v1/models":
            self.send(200, {"object": "list", "data": self.server.dialect.models})
        else:
            self.send(404, {"error": "no such path"})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append(body)
            server.times.append(time.monotonic())
            server.inside += 1
            server.most_inside = max(server.most_inside, server.inside)
        try:
            if not self._may() or (server.fault is not None and server.fault(self)):
                return
            self.send(*self._answer(self.path.removeprefix("/v1"), body))
        finally:
            with server.lock:
                server.inside -= 1

    def _may(self) -> bool:
        key = self.server.dialect.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        self.send(401, {"error": "wrong key"})
        return False

    def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        dialect = self.server.dialect
        if path not in dialect.endpoints:
            return 404, {"error": "no such endpoint"}
        if body["model"] not in [model["id"] for model in dialect.models]:
            return 404, {"error": f"no model {body['model']}"}
        known = {"model", "prompt", "messages", "max_tokens", "temperature", "top_p", "stop", "seed", "n", "logprobs"}
        known |= set(dialect.extra_fields) | ({"generation_config"} if dialect.native else set())
        known |= {"continue_final_message", "add_generation_prompt"} if dialect.continues else set()
        if dialect.strict and set(body) - known:
            return 422, {"detail": f"unexpected {sorted(set(body) - known)}"}
        if body["temperature"] == 0 and body.get("n", 1) > 1:
            return 400, {"error": "n must be 1 when greedy"}  # As vLLM says.
        if "messages" in body:
            prompt = rendered(body["messages"], dialect.continues and body.get("continue_final_message", False))
        else:
            prompt = body["prompt"]
        native = json.loads(body.get("generation_config", "{}")) if dialect.native else {}
        count = body.get("n", 1) if dialect.many else 1
        choices = [self._choice(body, native, prompt, index) for index in range(count)]
        tokens = sum(choice.pop("tokens") for choice in choices)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": tokens}
        return 200, {"choices": choices, **({"usage": usage} if dialect.usage else {})}

    def _choice(self, body: dict[str, Any], native: dict[str, Any], prompt: str, index: int) -> dict[str, Any]:
        dialect = self.server.dialect
        seed = body.get("seed", 0) if dialect.seed else len(self.server.seen) * 1000 + self.server.inside
        sampled = body["temperature"] > 0 if dialect.samples else bool(native.get("do_sample"))
        narrow = (body.get("top_k") if dialect.top_k else None) == 1 or native.get("top_k") == 1
        noise = None if not sampled or narrow else (seed if dialect.same_for_all else seed + index)
        text, finish = letters(prompt, noise, body["max_tokens"])
        tokens, matched = len(text) + (finish == "stop"), None
        stop = body["stop"][0] if "stop" in body else None
        if stop is not None and stop in text:
            at = text.index(stop)
            over = 1 if dialect.stop == "kept" else 0
            tokens, finish, matched = at + 1, "stop", stop
            text = text[: at + 1 + over] if dialect.stop == "kept" else text[:at]
        choice: dict[str, Any] = {"index": index, "finish_reason": finish, "tokens": tokens}
        if dialect.stop in {"stop_reason", "matched_stop"}:
            choice[dialect.stop] = matched
        logs = [-0.5] * tokens
        pieces = [*text[: tokens - 1], text[tokens - 1 :]] if tokens else []
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": text}
            said: Any = {"content": [{"token": p, "logprob": v} for p, v in zip(pieces, logs, strict=True)]}
        else:
            choice["text"] = text
            said = {"tokens": pieces, "token_logprobs": logs}
        choice["logprobs"] = said if dialect.log_probabilities and body.get("logprobs") else None
        return choice


@contextmanager
def serving(dialect: Dialect) -> Iterator[SmallServer]:
    """The server, answering in a thread until the end of the block."""
    server = SmallServer(dialect)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10.0)


def drop(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


WARM = Sampling(1.0)


def connect(running: SmallServer, **options: Any) -> ServerSampler:
    settings: dict[str, Any] = {"requests_at_once": 4, "seconds": 5.0, "retries": 3} | options
    sampler = server.connect(running.address, **settings)
    running.seen.clear()
    running.times.clear()
    return sampler


def ask(count: int, prompt: int = 0, sampling: Sampling = WARM, tokens: int = 20) -> list[Extension]:
    return [Extension(prompt, None, 1000 * prompt + index, sampling, tokens) for index in range(count)]


def texts_of(sampler: ServerSampler, requests: list[Extension], *prompts: str) -> list[str]:
    session = sampler.open([[]] * len(prompts), list(prompts), "\n")
    return [session.text(segment.node) for segment in session.extend(requests, lambda: None)]
