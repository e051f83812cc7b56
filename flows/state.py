"""What runs in the background for a registry, in `.flywheel/services.json`: written by `up`, read by everyone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from flows.processes import Process
from flywheel.errors import RegistryError
from storage.layout import Layout
from storage.tables import replace_text


@dataclass(frozen=True, slots=True)
class Service:
    """A background process of a registry: where it answers (None: it only asks others) and where it logs."""

    process: Process
    url: str | None
    log: Path


def services_file(layout: Layout) -> Path:
    return layout.local / "services.json"


def read_services(layout: Layout) -> dict[str, Service]:
    """Services by name (`prefect`, `mlflow`, `serve`) as last written, whether or not they still live."""
    path = services_file(layout)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: Service(Process(int(entry["pid"]), entry["identity"]), entry["url"], Path(entry["log"]))
            for name, entry in entries.items()
        }
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegistryError(
            f"{path} is damaged ({error!r}); remove it, and end what it named by hand (`ps -ef | grep flows.serve`)"
        ) from error


def write_services(layout: Layout, services: dict[str, Service]) -> None:
    """Replace the whole record in one step."""
    entries = {
        name: {
            "pid": service.process.pid,
            "identity": service.process.identity,
            "url": service.url,
            "log": str(service.log),
        }
        for name, service in services.items()
    }
    replace_text(services_file(layout), json.dumps(entries, indent=1) + "\n")
