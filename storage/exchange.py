"""Sending a registry to its remotes and following what others sent: data to DVC's remote, history to git's `origin`.

    push   data of all generations, then branch and tags: whoever sees a tag can have its data
    pull   branch and tags as far as they go on from ours, then data; two that went on from one generation stay apart

Data are objects named by their content, so that two machines cannot disagree on them; on history they can. A pull that
moves the branch notes what it is about in `.flywheel/state.json` until the folders have followed; `settle` ends it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel.errors import FlywheelError, InputError, RegistryBusy, RegistryError
from storage import cache, contents, damaged, dropped, dvc, foreign, git, lock, needs, remote_settings, remotes
from storage.layout import SUPERVISED
from storage.registry import IN_PROGRESS, read_state, recorded_paths, require_generation, write_state
from storage.remote_urls import data_address, git_address, is_local, redacted

if TYPE_CHECKING:
    from storage.registry import Registry

ORIGIN = "origin"
_THERE = "refs/flywheel/there"
PROTOCOLS = ("-c", "protocol.ext.allow=never", "-c", "protocol.fd.allow=never")
"""Addresses by which git would run what they say."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Our branch and tags beside those of `origin`: commits, and tags' own objects by name (`gen/0004`)."""

    branch: str
    ours: str
    theirs: str | None
    our_tags: dict[str, str]
    their_tags: dict[str, str]


def push(
    registry: Registry, remote: str | None = None, git_url: str | None = None, endpoint: str | None = None
) -> dict[str, Any]:
    """Send data of all generations, then history; addresses that are given are named and remembered first.

    {"data": {"remote", "objects", "bytes", "held"}, "lost": objects dropped for good, "history": {"remote", "branch",
    "tags": sent ones} or None where no git remote is named}. Raises InputError for addresses, RegistryBusy where
    `origin` has what is not here and while a run is at work, RegistryError where an object is neither here nor there;
    then no history was sent.
    """
    from storage.recovery import recover

    if endpoint and not remote:
        raise InputError("got --endpoint without --remote; name both: --remote s3://bucket/path --endpoint URL")
    with lock.ensure(registry, "push"):
        # A commit whose tag is missing would be tagged on both sides, each its own way.
        recover(registry)
        return _push(registry, remote, git_url, endpoint)


def _push(registry: Registry, remote: str | None, git_url: str | None, endpoint: str | None) -> dict[str, Any]:
    if git_url:
        _name_origin(registry, git_address(git_url))
    if remote:
        _name_data(registry, remote, endpoint)
    there = remotes.default(registry)
    if there is None:
        raise InputError(
            "no remote is named for the data; name one once: `flywheel push --remote s3://bucket/path` "
            "(or ssh://host/path, or a folder), and --git URL for the history"
        )
    origin = origin_url(registry)
    standing = None
    if origin is not None:
        standing = _standing(registry)
        _require_ahead(registry, standing, origin)
    sent, lost = _send_data(registry)
    done: dict[str, Any] = {
        "data": {"remote": there.url, "objects": sent.objects, "bytes": sent.bytes, "held": sent.held},
        "lost": lost,
        "history": None,
    }
    if standing is not None and origin is not None:
        tags = sorted(name for name in standing.our_tags if name not in standing.their_tags)
        refs = [f"{standing.ours}:refs/heads/{standing.branch}"]
        refs += [f"{standing.our_tags[name]}:refs/tags/{name}" for name in tags]
        _git(registry, "push", "-q", "--atomic", "--no-follow-tags", ORIGIN, *refs)
        done["history"] = {"remote": redacted(origin), "branch": standing.branch, "tags": tags}
    return done


def pull(
    registry: Registry, generations: Iterable[int] = (), everything: bool = False, drop_unfinished: bool = False
) -> dict[str, Any]:
    """Follow `origin`, then bring data: of these generations, of all, or by default what the head needs to go on.

    {"history": {"remote", "from", "to": commits, "tags": new ones} or None without a git remote, "data": {"what",
    "objects", "damaged": those of named generations that were hashed, found damaged and came anew}}. Raises
    RegistryBusy where a generation is unfinished here, files were edited by hand, or both sides
    went on from the same generation; then nothing changed.
    """
    from storage.prepare import unfinished
    from storage.recovery import recover

    with lock.ensure(registry, "pull"):
        recover(registry)
        history = _follow(registry, drop_unfinished) if origin_url(registry) is not None else None
        wanted = list(generations)
        for generation in wanted:
            require_generation(registry, generation)
        if everything:
            wanted = registry.generations()
        what = "data of " + (", ".join(f"gen/{number}" for number in wanted) if wanted else "the head")
        md5s = (needs.whole(registry, wanted) if wanted else needs.to_go_on(registry)) - _lost(registry)
        # What is asked for by name is looked at, not only looked for.
        replaced = damaged.drop(registry, md5s) if wanted else []
        objects = remotes.bring(registry, md5s, what)
        if replaced and unfinished(registry) is None:
            checkout(registry)
        return {"history": history, "data": {"what": what, "objects": objects, "damaged": len(replaced)}}


def settle(registry: Registry) -> str | None:
    """Finish a pull that was cut off after the branch had moved, else forget it; what was done."""
    intent = read_state(registry).get("pull")
    if intent is None:
        return None
    done = None
    if git.run(registry.root, "rev-parse", "HEAD") == intent["to"]:
        paths = sorted({*_changed(registry, intent["from"], intent["to"]), *recorded_paths(registry, "HEAD")})
        if paths:
            flags = ("--source=HEAD", "--staged", "--worktree", "--pathspec-from-file=-", "--pathspec-file-nul")
            git.run(registry.root, "--literal-pathspecs", "restore", *flags, stdin="\0".join(paths))
        checkout(registry)
        done = "finished a pull that was cut off"
    write_state(registry, pull=None)
    return done


def _changed(registry: Registry, before: str, after: str) -> list[str]:
    text = git.run(registry.root, "diff", "--name-only", "--no-renames", "-z", before, after)
    return [path for path in text.split("\0") if path]


def _require_free(registry: Registry, standing: Standing) -> None:
    """Raise RegistryBusy where what `origin` brings would be written over a file that git does not have yet."""
    assert standing.theirs is not None
    held = set(git.run(registry.root, "ls-tree", "-r", "--name-only", "-z", standing.ours).split("\0"))
    paths = [path for path in _changed(registry, standing.ours, standing.theirs) if path not in held]
    own = [path for path in paths if not IN_PROGRESS.fullmatch(path) and (registry.root / path).exists()]
    if own:
        _forget_theirs(registry)
        raise RegistryBusy(
            f"conflict: {', '.join(own[:5])} would be written over, and git does not have what is there; move it away"
        )


def checkout(registry: Registry) -> None:
    """Make the worktree's folders what the files of HEAD say, and drop those that they know nothing of."""
    recorded = registry.root / "dvc.lock"
    outputs = cache.lock_outputs(recorded.read_text(encoding="utf-8")) if recorded.exists() else {}
    targets = [name for name in contents.POINTERS if (registry.root / name).exists()]
    if outputs:
        targets.append("dvc.yaml")
    if targets:
        dvc.checkout(registry, *targets)
    gone = [name for name in SUPERVISED if name not in outputs]
    gone += [] if "judge.dvc" in targets else ["judge"]
    for name in gone:
        shutil.rmtree(registry.root / name, ignore_errors=True)


def origin_url(registry: Registry) -> str | None:
    """The git remote's address; None where none is named. Raises InputError for one that is not taken."""
    url = git.attempt(registry.root, "config", "--get", f"remote.{ORIGIN}.url")
    return git_address(url) if url else None


def _name_origin(registry: Registry, url: str) -> None:
    if is_local(url):
        _make_bare(Path(url), git.run(registry.root, "symbolic-ref", "--short", "HEAD"))
    if origin_url(registry) is None:
        git.run(registry.root, "remote", "add", ORIGIN, url)
    else:
        git.run(registry.root, "remote", "set-url", ORIGIN, url)


def _make_bare(path: Path, branch: str) -> None:
    """A bare repository at `path` if there is nothing yet. Raises InputError where something else is."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; history goes to a bare git repository: name a new path, it will be made")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        path.mkdir(parents=True, exist_ok=True)
        git.run(path, "init", "-q", "--bare", "-b", branch, "--template=")
    if git.attempt(path, "rev-parse", "--is-bare-repository") != "true":
        what = "a registry at work" if (path / "flywheel.json").exists() else "not a bare git repository"
        raise InputError(f"{path} is {what}; history goes to one that is bare: name a new path, it will be made")


def _name_data(registry: Registry, address: str, endpoint: str | None) -> None:
    """Name the remote, unless objects that only the present one has would be left behind."""
    before, url, there = remotes.default(registry), data_address(address), remotes.sources(registry)
    if before is not None and before.url == url and endpoint is None:
        return
    if there and url not in {remote.url for remote in there}:
        named = contents.of(registry, registry.generations())
        roots = {md5 for one in named.values() for md5 in one.roots()} - _lost(registry)
        if away := remotes.absent(registry, roots):
            raise InputError(
                f"{len(away)} outputs of older generations are only at remote {there[0]}; bring them here with "
                "`flywheel pull --all` before another remote is named"
            )
    remote_settings.name_data(registry, address, endpoint)


def _send_data(registry: Registry) -> tuple[remotes.Sent, int]:
    """Send what is here of all that is published; and how many objects are lost for good."""
    known = contents.of(registry, registry.generations())
    named = {md5 for one in known.values() for md5 in one.roots() | one.files(*one.tables)}
    named |= needs.recorded_at(registry, "HEAD") | contents.everything(registry).own
    objects, _ = contents.expand(registry, named)
    here = {md5 for md5 in objects if cache.cache_path(registry, md5).exists()}
    lost = _lost(registry)
    sent = remotes.send(registry, here, "data")
    away = objects - here - lost
    if missing := away - remotes.held(registry, away):
        raise RegistryError(
            f"no history was sent: {len(missing)} objects of published generations are neither in the cache nor at the "
            f"remote ({', '.join(sorted(missing)[:3])}); restore .dvc/cache from a copy and run again"
        )
    return sent, len((objects & lost) - here)


def _lost(registry: Registry) -> frozenset[str]:
    return dropped.read(registry).lost


def _standing(registry: Registry) -> Standing:
    """Ask `origin`; bring commits and tags that are not here under names of their own, which nobody reads."""
    root = registry.root
    branch = git.run(root, "symbolic-ref", "--short", "HEAD")
    listed = _git(registry, "ls-remote", ORIGIN, f"refs/heads/{branch}", "refs/tags/*")
    there = {name: sha for sha, _, name in (line.partition("\t") for line in listed.splitlines())}
    theirs = there.pop(f"refs/heads/{branch}", None)
    their_tags = {name[10:]: sha for name, sha in there.items() if not name.endswith("^{}")}
    form = "--format=%(objectname) %(refname)"
    lines = git.run(root, "for-each-ref", form, "refs/tags/").splitlines()
    our_tags = {name[10:]: sha for sha, _, name in (line.partition(" ") for line in lines)}
    ours = git.run(root, "rev-parse", "HEAD")
    wanted = [f"+refs/heads/{branch}:{_THERE}/head"] if theirs else []
    if set(their_tags) - set(our_tags):
        wanted.append(f"+refs/tags/*:{_THERE}/tags/*")
    if wanted:
        _git(registry, "fetch", "-q", "--no-tags", "--no-recurse-submodules", ORIGIN, *wanted)
    return Standing(branch, ours, theirs, our_tags, their_tags)


def _forget_theirs(registry: Registry) -> None:
    names = git.run(registry.root, "for-each-ref", "--format=%(refname)", _THERE).splitlines()
    if names:
        git.run(registry.root, "update-ref", "--stdin", stdin="".join(f"delete {name}\n" for name in names))


def _require_ahead(registry: Registry, standing: Standing, origin: str) -> None:
    """Raise RegistryBusy unless all that `origin` has is here too."""
    moved = _moved(standing)
    ahead = standing.theirs is None or _is_ancestor(registry, standing.theirs, standing.ours)
    behind = standing.theirs is not None and _is_ancestor(registry, standing.ours, standing.theirs)
    _forget_theirs(registry)
    if not ahead and behind and not moved:
        raise RegistryBusy(
            f"conflict: {redacted(origin)} has {_side(standing.their_tags, standing.our_tags)}, which is not here; "
            "take it in first with `flywheel pull`"
        )
    if not ahead or moved:
        raise RegistryBusy(_diverged(standing, origin))


def _follow(registry: Registry, drop_unfinished: bool) -> dict[str, Any]:
    """Take in what `origin` has on top of ours: its data first, then tags and branch in one step, then the folders."""
    from storage.prepare import unfinished

    origin = origin_url(registry)
    assert origin is not None
    standing = _standing(registry)
    new = {name: sha for name, sha in standing.their_tags.items() if name not in standing.our_tags}
    done = {"remote": redacted(origin), "from": standing.ours, "to": standing.ours, "tags": sorted(new)}
    if standing.theirs is None:
        raise InputError(
            f"{redacted(origin)} has no branch {standing.branch} yet; `flywheel push` where the generations are"
        )
    if _moved(standing) or not (
        _is_ancestor(registry, standing.ours, standing.theirs) or _is_ancestor(registry, standing.theirs, standing.ours)
    ):
        _forget_theirs(registry)
        raise RegistryBusy(_diverged(standing, origin))
    forward = standing.theirs != standing.ours and _is_ancestor(registry, standing.ours, standing.theirs)
    entry = unfinished(registry)
    if forward and entry is not None and not drop_unfinished:
        _forget_theirs(registry)
        raise RegistryBusy(
            f"conflict: gen/{entry['generation']} is unfinished here and {redacted(origin)} has gone on with "
            f"{_side(standing.their_tags, standing.our_tags)}; drop the unfinished work with "
            "`flywheel pull --drop-unfinished`, or finish it with `flywheel run` and keep the two lines apart"
        )
    foreign.check_tags(registry.root, new.values())
    if forward:
        registry.check_clean()
        foreign.check(registry.root, standing.theirs)
        _require_free(registry, standing)
        remotes.bring(registry, needs.recorded_at(registry, standing.theirs), "the new head's data")
        if entry is not None:
            _drop_unfinished(registry, int(entry["generation"]))
        write_state(registry, pull={"from": standing.ours, "to": standing.theirs})
    changes = [f"create refs/tags/{name} {sha}\n" for name, sha in new.items()]
    if forward:
        changes.append(f"update refs/heads/{standing.branch} {standing.theirs} {standing.ours}\n")
    if changes:
        # All or none: a branch without its tags would look like one whose last commit was cut off.
        git.run(registry.root, "update-ref", "--stdin", stdin="".join(changes))
    settle(registry)
    _forget_theirs(registry)
    return {**done, "to": standing.theirs if forward else standing.ours}


def _drop_unfinished(registry: Registry, generation: int) -> None:
    """Take the worktree back to HEAD, as a rollback does to a generation in progress."""
    from storage.registry import recorded_paths

    shutil.rmtree(registry.layout.work(generation), ignore_errors=True)
    paths = recorded_paths(registry, "HEAD")
    git.run(registry.root, "restore", "--source=HEAD", "--staged", "--worktree", "--", *paths)
    if git.attempt(registry.root, "ls-files", "--error-unmatch", "--", "judge.dvc") is None:
        (registry.root / "judge.dvc").unlink(missing_ok=True)
    registry.layout.ledger(generation).unlink(missing_ok=True)
    write_state(registry, unfinished=None)


def _moved(standing: Standing) -> list[str]:
    """Tags that both sides have, of different objects."""
    return sorted(name for name, sha in standing.their_tags.items() if standing.our_tags.get(name, sha) != sha)


def _diverged(standing: Standing, origin: str) -> str:
    ours, theirs = _side(standing.our_tags, standing.their_tags), _side(standing.their_tags, standing.our_tags)
    both = f"; both made {', '.join(moved)}" if (moved := _moved(standing)) else ""
    return (
        f"conflict: two machines went on from the same generation: here {ours} (branch at {standing.ours[:12]}), at "
        f"{redacted(origin)} {theirs} (at {(standing.theirs or 'none')[:12]}){both}. Nothing was changed, and both can "
        f"be kept: take theirs up in a folder of its own with `flywheel clone {redacted(origin)} ANOTHER_FOLDER`, and "
        "send this one to an address of its own with `flywheel push --git ANOTHER_ADDRESS`"
    )


def _side(tags: dict[str, str], others: dict[str, str]) -> str:
    own = sorted(name for name, sha in tags.items() if others.get(name) != sha)
    return ", ".join(own[:4]) + (f", ... {own[-1]}" if len(own) > 4 else "") if own else "other commits"


def _is_ancestor(registry: Registry, older: str, newer: str) -> bool:
    return git.attempt(registry.root, "merge-base", "--is-ancestor", older, newer) is not None


def _git(registry: Registry, *arguments: str, stdin: str = "") -> str:
    """Git to the network; its words without what may be secret. Raises FlywheelError."""
    try:
        return git.run(registry.root, *PROTOCOLS, *arguments, stdin=stdin)
    except FlywheelError as error:
        raise type(error)(
            f"{redacted(str(error))}; see whether {redacted(origin_url(registry) or ORIGIN)} is reached from here"
        ) from None
