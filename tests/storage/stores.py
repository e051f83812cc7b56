"""Remotes to test against: a service that speaks S3, over real HTTP on this machine, and a wire to it to be cut."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from storage.registry import Registry


@dataclass(frozen=True, slots=True)
class S3:
    """A bucket of its own at a service's address, looked at by plain HTTP."""

    endpoint: str
    bucket: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/registry"

    def keys(self) -> set[str]:
        """MD5s (with `.dir`) of the objects that lie where DVC looks for them."""
        listing = self._ask("GET", "?list-type=2&max-keys=1000")
        found = [node.text or "" for node in ET.fromstring(listing).iter() if node.tag.endswith("}Key")]
        return {"".join(name.split("/")[-2:]) for name in found if name.startswith("registry/files/md5/")}

    def read(self, md5: str) -> bytes:
        return self._ask("GET", f"/{_key(md5)}")

    def write(self, md5: str, body: bytes) -> None:
        self._ask("PUT", f"/{_key(md5)}", body)

    def delete(self, md5: str) -> None:
        self._ask("DELETE", f"/{_key(md5)}")

    def _ask(self, method: str, what: str, body: bytes | None = None) -> bytes:
        # The service wants a name, but checks no signature.
        headers = {"Authorization": "AWS testing:x", "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{self.endpoint}/{self.bucket}{what}", body, headers, method=method)
        with urllib.request.urlopen(request) as answer:
            return bytes(answer.read())


def _key(md5: str) -> str:
    return f"registry/files/md5/{md5[:2]}/{md5[2:]}"


@pytest.fixture(scope="session")
def service() -> Iterator[str]:
    """The service's address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(service: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An empty bucket, and the environment to use it: faults are told at the first try."""
    use_s3(monkeypatch)
    bucket = "".join(letter for letter in request.node.name.lower() if letter.isalnum())[:50] + "-bucket"
    urllib.request.urlopen(urllib.request.Request(f"{service}/{bucket}", method="PUT")).close()
    return S3(service, bucket)


def use_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name, value in (("AWS_DEFAULT_REGION", "us-east-1"), ("AWS_MAX_ATTEMPTS", "1"), ("AWS_CONFIG_FILE", "/none")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")


class Wire:
    """A TCP forwarder to a service. After `limit` bytes in either direction it cuts everything and takes no more, or,
    where `stalls`, keeps still."""

    def __init__(self, endpoint: str, limit: int, stalls: bool = False) -> None:
        self.limit, self.stalls, self.count = limit, stalls, 0
        self.reached = threading.Event()
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._open += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(source, target), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                self.count += len(data)
                if self.count > self.limit:
                    self.reached.set()
                    if self.stalls:
                        return
                    self.cut()
                    return
                target.sendall(data)
            # The end of one request's connection.
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        for one in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def cached(registry: Registry) -> dict[str, bytes]:
    """Every object in the cache by the name it has, whatever its bytes are; without metrics.json, which DVC stores
    there and git keeps."""
    folder = registry.root / ".dvc" / "cache" / "files" / "md5"
    found = {path.parent.name + path.name: path.read_bytes() for path in folder.glob("??/*")}
    return {md5: body for md5, body in found.items() if not body.startswith(b'{\n "champion"')}


def leftovers(registry: Registry) -> list[str]:
    """What lies in the cache's folder beside what DVC keeps there."""
    return sorted(
        path.name
        for path in (registry.root / ".dvc" / "cache").iterdir()
        if path.name not in {"files", "runs"} and len(path.name) != 2
    )
