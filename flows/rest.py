"""The few calls to Prefect's HTTP API that need no Prefect: importing it takes a second, and `up`, `down` and the start
of a run are waited for."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any, Literal

from flywheel.errors import FlywheelError

Missed = Literal["latest", "skip", "all"]
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_PAGE = 200
_PAUSES_SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0)


def request(api: str, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """One call; the decoded answer. Raises FlywheelError if there is no answer or a refusal.

    Prefect answers 503 while its database is locked; as its own client does, we ask again, five times over 8 s.
    """
    for pause in _PAUSES_SECONDS:
        try:
            return _once(api, method, path, body)
        except _Unavailable:
            time.sleep(pause)
    return _once(api, method, path, body)


class _Unavailable(FlywheelError):  # noqa: N818 (a state, not a fault)
    """503: the server is there, but cannot answer now."""


def _once(api: str, method: str, path: str, body: dict[str, Any] | None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    call = urllib.request.Request(f"{api}{path}", data=data, method=method, headers=headers)
    try:
        with _direct.open(call, timeout=30) as reply:
            text = reply.read()
    except urllib.error.HTTPError as error:
        with error:
            answer = error.read().decode("utf-8", "replace")[:500]
        kind = _Unavailable if error.code == 503 else FlywheelError
        raise kind(f"Prefect at {api} refused {method} {path}: {error.code} {answer}") from error
    except OSError as error:
        raise FlywheelError(f"Prefect at {api} did not answer {method} {path}: {error}") from error
    return json.loads(text) if text else None


def flow_runs(api: str, states: list[str], **conditions: Any) -> list[dict[str, Any]]:
    """Flow runs in any of the state types, earliest expected first, with further conditions of Prefect's filter."""
    found: list[dict[str, Any]] = []
    while True:
        body = {
            "flow_runs": {"state": {"type": {"any_": states}}, **conditions},
            "sort": "EXPECTED_START_TIME_ASC",
            "limit": _PAGE,
            "offset": len(found),
        }
        page: list[dict[str, Any]] = request(api, "POST", "/flow_runs/filter", body)
        found += page
        if len(page) < _PAGE:
            return found


def set_state(api: str, flow_run: str, state: str, message: str) -> None:
    """Put a flow run into a state whatever it was in."""
    body = {"state": {"type": state, "message": message}, "force": True}
    request(api, "POST", f"/flow_runs/{flow_run}/set_state", body)


def crash_unfinished(api: str, *, only_deployed: bool = False) -> int:
    """Runs whose process is known to be gone become Crashed and give back their slot. Returns how many.

    `only_deployed`: only those of a schedule, while another process may have runs of its own.
    """
    left = flow_runs(api, ["RUNNING", "PENDING", "CANCELLING"])
    left = [run for run in left if not only_deployed or run["deployment_id"]]
    for run in left:
        set_state(api, run["id"], "CRASHED", "The process of this run had ended; what it finished is kept.")
    return len(left)


def drop_missed(api: str, missed: Missed) -> int:
    """Ticks that nobody served: `latest` keeps the newest, `skip` none, `all` every one. Returns how many went."""
    if missed == "all":
        return 0
    before = {"before_": datetime.now(UTC).isoformat()}
    late = flow_runs(api, ["SCHEDULED"], expected_start_time=before)
    dropped = late[:-1] if missed == "latest" else late
    for run in dropped:
        set_state(api, run["id"], "CANCELLED", f"Missed while no service ran; the schedule's policy is {missed!r}.")
    return len(dropped)


def delete_deployments(api: str, name: str, keep: set[str] | None = None) -> int:
    """Delete deployments called `name`, with their future runs, but those whose id is in `keep`."""
    found = request(api, "POST", "/deployments/filter", {"deployments": {"name": {"any_": [name]}}})
    gone = [deployment["id"] for deployment in found if deployment["id"] not in (keep or set())]
    for deployment in gone:
        request(api, "DELETE", f"/deployments/{deployment}")
    return len(gone)
