"""A registry on another machine: history by git, then the data that are asked for, from DVC's remote.

    clone SOURCE TARGET      SOURCE: a git address, or the folder of a registry, whose cache then serves as remote

What comes from elsewhere is data, never a program: git runs without hooks, templates, submodules and filters, only by
addresses that run nothing; the tree and its DVC files are looked at before anything is written (`storage.foreign`);
every object is hashed on arrival. That its params name commands is for the user to trust: `.flywheel/cloned.json`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flywheel.errors import FlywheelError, InputError, RegistryError
from storage import cache, dvc, exchange, foreign, git, needs, remote_settings, remotes
from storage.draft import Draft, drafted, own_identity
from storage.registry import Registry, json_text, write_state
from storage.remote_urls import data_address, endpoint_address, git_address, is_local, redacted

_PLAIN = "* -text -filter -ident -working-tree-encoding\n"
"""Attributes of the clone's own that win over those in its tree: no filter of the user's runs on what others sent."""


def clone(
    source: str,
    target: Path,
    at: int | None = None,
    everything: bool = False,
    remote: str | None = None,
    endpoint: str | None = None,
) -> dict[str, Any]:
    """Make a registry at `target` out of the one at `source`, with the data that its head needs to go on, and those of
    the generation `at` or of all.

    It is built beside `target` and renamed, so that a failure leaves nothing behind. {"registry", "from",
    "generations": how many, "head", "remote", "objects": brought ones}. Raises InputError for addresses, a taken folder
    or without a git identity, RegistryError for what is no registry, is refused, or whose data cannot be had.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not an empty folder; name a new one to clone into")
    url = git_address(source)
    if endpoint and not remote:
        raise InputError("got --endpoint without --remote; name both")
    with drafted(target, "clone") as made:
        draft = made.folder
        _fetch_history(url, draft)
        head = git.run(draft, "rev-parse", "HEAD")
        foreign.check(draft, head)
        foreign.check_tags(draft, git.run(draft, "for-each-ref", "--format=%(refname)", "refs/tags/").splitlines())
        git.run(draft, "reset", "-q", "--hard", head)
        _make_local(made, url)
        _name_remote(draft, url, remote, endpoint)
        registry = Registry.open(draft)
        wanted = needs.to_go_on(registry)
        chosen = _chosen(registry, at, everything)
        wanted |= needs.whole(registry, chosen)
        if wanted and not remotes.sources(registry):
            raise RegistryError(
                f"{redacted(url)} names no remote for its data (a folder is named for one machine only); say where "
                "they are with --remote URL, as `flywheel push` was told"
            )
        objects = remotes.bring(registry, wanted, f"data of {redacted(url)}") if wanted else 0
        # Links may be absolute, so the folders follow once it is where it stays.
        write_state(registry, pull={"from": head, "to": head})
    registry = Registry.open(target)
    try:
        exchange.settle(registry)
    except FlywheelError as error:
        raise type(error)(
            f"{target} was cloned, but its folders did not follow: {error}; mend that and finish it with "
            f"`flywheel recover --registry {target}`, or remove the folder"
        ) from error
    _mark(target, url)  # whatever came along
    named = remotes.sources(registry)
    return {
        "registry": str(target),
        "from": redacted(url),
        "generations": len(registry.generations()),
        "head": registry.head_generation(),
        "remote": named[0].url if named else None,
        "objects": objects,
    }


def _fetch_history(url: str, draft: Path) -> None:
    """Branch and tags of `url` into a repository at `draft`, nothing checked out."""
    arguments = ["clone", "-q", "--no-checkout", "--no-local", "--no-recurse-submodules", "--template="]
    try:
        git.run(draft.parent, *exchange.PROTOCOLS, *arguments, "--origin", exchange.ORIGIN, "--", url, str(draft))
    except FlywheelError as error:
        raise type(error)(
            f"{redacted(str(error))}; SOURCE must be a git address or a registry's folder that can be read from here"
        ) from None
    if git.attempt(draft, "rev-parse", "-q", "--verify", "HEAD^{commit}") is None:
        raise RegistryError(f"{redacted(url)} has no commit on its branch; push the registry there first")
    attributes = draft / ".git" / "info" / "attributes"
    attributes.parent.mkdir(exist_ok=True)
    attributes.write_text(_PLAIN, encoding="utf-8")


def _make_local(made: Draft, url: str) -> None:
    """What every registry has of its own and git does not carry."""
    from storage.registry import can_reflink

    own_identity(made)
    draft = made.folder
    (draft / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
    (draft / ".flywheel").mkdir()
    if can_reflink(draft / ".flywheel"):
        local = f'[cache]\n    type = "reflink,{dvc.LINKS}"\n'
        (draft / ".dvc" / "config.local").write_text(local, encoding="utf-8")
    _mark(draft, url)


def _mark(root: Path, url: str) -> None:
    """Say that it is a clone, and that nobody has trusted it yet."""
    facts = {"from": redacted(url), "trusted": False}
    (root / ".flywheel" / "cloned.json").write_text(json_text(facts), encoding="utf-8")


def _name_remote(draft: Path, url: str, remote: str | None, endpoint: str | None) -> None:
    """Where the clone's data come from: what the user says, else what the registry says, else the source's cache."""
    if remote:
        service = endpoint_address(endpoint) if endpoint else None
        remote_settings.name_locally(draft, remote_settings.NAME, data_address(remote), service, True)
    elif cache.setting(draft, "core", "remote") is None and is_local(url) and (Path(url) / "flywheel.json").is_file():
        folder = cache.cache_folder(Path(os.path.realpath(url)))
        remote_settings.name_locally(draft, remotes.SOURCE, str(folder), None, False)


def _chosen(registry: Registry, at: int | None, everything: bool) -> list[int]:
    from storage.registry import require_generation

    if everything:
        return registry.generations()
    if at is None:
        return []
    require_generation(registry, at)
    return [at]
