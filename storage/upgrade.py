"""From a registry of an earlier version to this one, in one commit that can be taken back.

    1 -> 2   `anchors.json` holds the object ids of the tags there are; from here on each commit holds that of the tag
             before it (trailer Flywheel-Previous-Tag), and `trained_on` says of which generation each label is

Nothing that was published is rewritten: views read tables of either version.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flywheel.errors import InputError, RegistryBusy
from storage import git, lock
from storage.history import published_many, tagged
from storage.layout import REGISTRY_VERSION, tag_name
from storage.prepare import unfinished
from storage.registry import json_text
from storage.tables import replace_text

if TYPE_CHECKING:
    from storage.registry import Registry

ANCHORS = "anchors.json"


def upgrade(registry: Registry) -> dict[str, Any]:
    """Bring a registry to REGISTRY_VERSION; {"from", "to", "generations", "commit"}.

    Raises InputError where it is there already, RegistryBusy for files edited by hand and while a generation is in
    progress.
    """
    from storage.recovery import recover

    with lock.ensure(registry, "upgrade"):
        recover(registry)
        marker = json.loads(registry.layout.marker.read_text(encoding="utf-8"))
        version = int(marker["registry_version"])
        if version == REGISTRY_VERSION:
            raise InputError(f"{registry.root} has registry version {version} already; there is nothing to upgrade")
        registry.check_clean()
        if (entry := unfinished(registry)) is not None:
            raise RegistryBusy(
                f"{tag_name(entry['generation'])} is in progress; finish it with the Flywheel that began it, or drop "
                f"it by removing {registry.layout.state}, then upgrade"
            )
        anchors = {tag_name(number): tag.object for number, tag in tagged(registry).items()}
        changed = {**marker, "registry_version": REGISTRY_VERSION, "upgraded_from": version}
        replace_text(registry.root / ANCHORS, json_text({"tags": anchors}))
        replace_text(registry.layout.marker, json_text(changed))
        commit = _commit(registry, version, REGISTRY_VERSION)
        return {"from": version, "to": REGISTRY_VERSION, "generations": len(anchors), "commit": commit}


def undo(registry: Registry) -> dict[str, Any]:
    """Take the upgrade back; as `upgrade`. Raises InputError where there was none, or where generations were published
    since, which the earlier version could not read."""
    from storage.recovery import recover

    with lock.ensure(registry, "take an upgrade back"):
        recover(registry)
        marker = json.loads(registry.layout.marker.read_text(encoding="utf-8"))
        version = marker.pop("upgraded_from", None)
        if version is None:
            raise InputError(f"{registry.root} was not upgraded; there is nothing to take back")
        registry.check_clean()
        newer = [n for n, one in published_many(registry, registry.generations()).items() if one["version"] > version]
        if newer or unfinished(registry) is not None:
            what = f"{tag_name(newer[0])} was published" if newer else "a generation was begun"
            raise InputError(
                f"{what} since the upgrade, and version {version} could not read it; go on with this version, or "
                "clone the registry at an earlier commit"
            )
        replace_text(registry.layout.marker, json_text({**marker, "registry_version": version}))
        (registry.root / ANCHORS).unlink(missing_ok=True)
        commit = _commit(registry, REGISTRY_VERSION, version)
        return {
            "from": REGISTRY_VERSION,
            "to": version,
            "generations": len(registry.generations()),
            "commit": commit,
        }


def _commit(registry: Registry, source: int, target: int) -> str:
    names = [registry.layout.marker.name, ANCHORS]
    text = git.message(f"Bring the registry from version {source} to {target}", {"Flywheel-Upgrade": str(target)})
    git.run(registry.root, "add", "-A", "--", *names)
    git.run(registry.root, "commit", "-q", "--cleanup=verbatim", "-F", "-", "--only", "--", *names, stdin=text)
    return git.run(registry.root, "rev-parse", "HEAD")
