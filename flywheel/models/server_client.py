"""HTTP to a server of the OpenAI protocol: many requests at once, each with a time limit, retries and patience.

Transport only: what the bodies mean is `server_requests`' business. Requests run on an event loop in a thread of their
own, so that the caller may itself be inside one, and a stop ends those in flight at once instead of waiting for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import ipaddress
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flywheel.errors import ModelError
from flywheel.seeds import stream

if TYPE_CHECKING:
    import httpx

FIRST_PAUSE_SECONDS = 0.5
"""Wait before the first retry; each later one waits twice as long, less up to half of it so that not all come back at
the same moment."""
LONGEST_PAUSE_SECONDS = 60.0
_CONNECT_SECONDS = 10.0
_LOOK_SECONDS = 0.1
_RETRIED = frozenset({408, 409, 425, 429})


@dataclass(frozen=True, slots=True)
class Post:
    """A JSON object for one of the server's endpoints, by its path below the address."""

    path: str
    body: dict[str, Any]
    is_trial: bool = False
    """Whether it may be the request itself that breaks the server: HTTP 500 then is believed at the second time."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a request."""

    body: dict[str, Any] | None
    """The JSON object that was answered; None where there was no usable answer."""
    status: int | None = None
    """HTTP status; None where the server could not be reached, or fell silent."""
    problem: str = ""
    """Why there is no body, in a few words."""
    refused: bool = False
    """The server does not want this request, and would not the next time either."""
    wait_seconds: float = 0.0
    """How long it asked to be left alone (Retry-After)."""


Check = Callable[[dict[str, Any]], str]
"""What is wrong with a body, so that it is asked for again; empty where it will do."""


class Client:
    """One server, by the address that its endpoints lie below (`http://127.0.0.1:8000/v1`)."""

    def __init__(self, address: str, requests_at_once: int, seconds: float, retries: int) -> None:
        """`seconds` bounds one request, `retries` is how often it is sent again. Raises ModelError where the address is
        none. A key in OPENAI_API_KEY goes along in the header, and nowhere else."""
        import httpx

        try:
            parts = urlsplit(address)
            usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ModelError(
                f"{address} is no server's address; expected one such as http://127.0.0.1:8000/v1, with the /v1"
            )
        if parts.username is not None or parts.password is not None:
            raise ModelError(
                f"the address of the server at {parts.hostname} holds a user or password, which would be stored with "
                "the params; leave them out and set OPENAI_API_KEY in the environment"
            )
        self.address = address.rstrip("/")
        self.requests_at_once = requests_at_once
        self.seconds = seconds
        self.retries = retries
        self._certificates = httpx.create_ssl_context()
        self._reads_proxies = not _is_loopback(parts.hostname or "")
        self._down = False

    def get(self, path: str) -> Reply:
        """Ask once for what the server says of itself; sent again only while it says that it is busy."""
        replies: list[Reply] = []
        self._work([path], lambda _body: "", lambda _number, reply: replies.append(reply), lambda: None)
        return replies[0]

    def post_all(
        self,
        posts: Sequence[Post],
        check: Check,
        told: Callable[[int, Reply], None],
        should_stop: Callable[[], None],
    ) -> None:
        """Send all, `requests_at_once` at a time. `told` hears (number of the post, reply) in this thread as each
        comes in; it and `should_stop`, called several times a second, may raise, which ends what is in flight."""
        self._work(posts, check, told, should_stop)

    def _work(
        self,
        requests: Sequence[Post | str],
        check: Check,
        told: Callable[[int, Reply], None],
        should_stop: Callable[[], None],
    ) -> None:
        should_stop()
        arrived: queue.SimpleQueue[tuple[int, Reply] | BaseException] = queue.SimpleQueue()
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._all(requests, check, arrived))
        thread = threading.Thread(target=_run, args=(loop, task, arrived), name="flywheel-server", daemon=True)
        thread.start()
        try:
            for _ in requests:
                item = None
                while item is None:
                    should_stop()
                    with contextlib.suppress(queue.Empty):
                        item = arrived.get(timeout=_LOOK_SECONDS)
                if isinstance(item, BaseException):
                    raise item
                told(*item)
        except BaseException:
            # The loop may have closed by itself: then there is nothing left to cancel.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
            thread.join()
            while not arrived.empty():
                item = arrived.get()
                if not isinstance(item, BaseException) and item[1].body is not None:
                    told(*item)  # It was paid for.
            raise
        thread.join()

    async def _all(
        self,
        requests: Sequence[Post | str],
        check: Check,
        arrived: queue.SimpleQueue[tuple[int, Reply] | BaseException],
    ) -> None:
        import httpx

        key = os.environ.get("OPENAI_API_KEY", "").strip()
        limit = asyncio.Semaphore(self.requests_at_once)
        async with httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(self.seconds, connect=min(self.seconds, _CONNECT_SECONDS), pool=None),
            limits=httpx.Limits(max_connections=self.requests_at_once),
            verify=self._certificates,
            trust_env=self._reads_proxies,
        ) as http:

            async def one(number: int, request: Post | str) -> None:
                async with limit:
                    arrived.put((number, await self._send(http, number, request, check)))

            async with asyncio.TaskGroup() as group:
                for number, request in enumerate(requests):
                    group.create_task(one(number, request))

    async def _send(self, http: httpx.AsyncClient, number: int, request: Post | str, check: Check) -> Reply:
        """One request's reply in the end: a POST, or a GET where it is a path alone."""
        attempt = 0
        while True:
            reply = await self._once(http, request, check)
            if reply.body is not None or reply.refused:
                self._down = False
                return reply
            retries = self.retries
            if reply.status is None and (self._down or isinstance(request, str)):
                # Once a server has stayed away through all of one request's retries, the others ask it only once.
                retries = 0
            elif reply.status == 500 and isinstance(request, Post) and request.is_trial:
                retries = min(retries, 1)
            if attempt >= retries:
                self._down = reply.status is None
                return reply
            await asyncio.sleep(self._pause(reply, number, attempt))
            attempt += 1

    def _pause(self, reply: Reply, number: int, attempt: int) -> float:
        """Seconds to wait. What the server asks for is honoured, up to the time one request may take."""
        doubled = min(FIRST_PAUSE_SECONDS * 2.0**attempt, LONGEST_PAUSE_SECONDS)
        scattered = doubled * (0.5 + stream(0, "retry", os.getpid(), number, attempt) / 2.0**65)
        return max(scattered, min(reply.wait_seconds, self.seconds))

    async def _once(self, http: httpx.AsyncClient, request: Post | str, check: Check) -> Reply:
        import httpx

        try:
            async with asyncio.timeout(self.seconds):
                if isinstance(request, Post):
                    response = await http.post(self.address + request.path, json=request.body)
                else:
                    response = await http.get(self.address + request)
        except (TimeoutError, httpx.TimeoutException):
            return Reply(None, None, f"no answer within {self.seconds:g} s")
        except httpx.HTTPError as error:
            return Reply(None, None, f"{type(error).__name__}: {error}".rstrip(": "))
        status = response.status_code
        if status in _RETRIED or (status >= 500 and status != 501):
            return Reply(None, status, _said(response), wait_seconds=_wait(response.headers.get("Retry-After")))
        if status != 200:
            return Reply(None, status, _said(response), refused=True)
        try:
            answered = response.json()
        except (json.JSONDecodeError, UnicodeDecodeError):
            return Reply(None, status, f"its answer of {len(response.content)} bytes is no complete JSON")
        if not isinstance(answered, dict):
            return Reply(None, status, f"its answer is a JSON {type(answered).__name__}, no object")
        wrong = check(answered)
        return Reply(None, status, wrong) if wrong else Reply(answered, status)


def _run(
    loop: asyncio.AbstractEventLoop,
    task: asyncio.Task[None],
    arrived: queue.SimpleQueue[tuple[int, Reply] | BaseException],
) -> None:
    """The thread: run the loop to the task's end, and hand an exception over to the caller."""
    try:
        loop.run_until_complete(task)
    except asyncio.CancelledError:
        pass
    except BaseException as error:  # noqa: BLE001 (the caller's thread raises it)
        arrived.put(error)
    finally:
        loop.run_until_complete(_settle(loop))
        loop.close()


async def _settle(loop: asyncio.AbstractEventLoop) -> None:
    """Let connections that were told to close do so: that takes a turn or two of the loop."""
    await loop.shutdown_asyncgens()
    for _ in range(3):
        await asyncio.sleep(0)


def _said(response: httpx.Response) -> str:
    """Status and the first words of what the server said about it."""
    text = " ".join(response.text.split())[:300]
    return f"HTTP {response.status_code} {response.reason_phrase}: {text}".rstrip(": ")


def _wait(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, given as such or as a date; 0 where it is missing or unreadable."""
    if header is None:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine, which no proxy leads to."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
