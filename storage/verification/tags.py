"""Generations' tags and commits: that each is the one that was made, in its place, and that none is gone.

    gen/0003 ── commit ── trailer Flywheel-Previous-Tag ──> the tag object of gen/0002, by its id
        └── MLflow's run of generation 3 ── tag Flywheel-Tag-Object ──> the tag object of gen/0003 itself

A tag object's id covers the commit, that commit's tree and all that came before, so a tag that was moved or made anew
differs from what the next generation's commit, `anchors.json` of an upgraded registry, or MLflow (`pointers`) holds.
"""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flywheel.errors import FlywheelError
from storage import git
from storage.layout import tag_name
from storage.registry import RECORDED
from storage.verification import repository
from storage.verification.findings import Findings
from storage.verification.repository import TAGS, Refs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from storage.registry import Registry

_AGAIN = "if a clone has the tag that was, fetch it: `git fetch COPY +refs/tags/gen/*:refs/tags/gen/*`"


@dataclass(frozen=True, slots=True)
class Tag:
    """A generation's annotated tag, by the ids that it had when the verification began."""

    generation: int
    object: str
    commit: str

    @property
    def name(self) -> str:
        return tag_name(self.generation)


@dataclass(frozen=True, slots=True)
class History:
    """All commits that something names: their parents and trailers."""

    parents: dict[str, list[str]]
    trailers: dict[str, dict[str, str]]

    def before(self, *commits: str) -> set[str]:
        """The commits and all that came before them."""
        seen, waiting = set(commits), deque(commits)
        while waiting:
            for parent in self.parents.get(waiting.popleft(), []):
                if parent not in seen:
                    seen.add(parent)
                    waiting.append(parent)
        return seen


def read_history(root: Path, known: Refs, findings: Findings) -> History:
    """Without a commit where git cannot walk them, which is a failure."""
    form = "--format=%H%x00%P%x00%(trailers:only,unfold)%x01"
    there = zip(known.starts, repository.kinds(root, known.starts), strict=True)
    starts = "".join(f"{digest}\n" for digest, found in there if found is not None)
    parents, trailers = dict[str, list[str]](), dict[str, dict[str, str]]()
    try:
        text = git.run(root, "--no-replace-objects", "log", "--stdin", form, stdin=starts) if starts else ""
    except FlywheelError as error:
        why = f"the commits cannot be followed: {str(error).rpartition(': ')[2]}"
        findings.fail("git", ".git", why, "first bring back the objects named above, from a clone or a backup")
        return History({}, {})
    for record in text.split("\x01"):
        commit, _, rest = record.strip("\n").partition("\0")
        if commit:
            above, _, body = rest.partition("\0")
            parents[commit] = above.split()
            trailers[commit] = git.parse_trailers(body)
    findings.count("commits", len(parents))
    return History(parents, trailers)


def read_tags(root: Path, known: Refs, findings: Findings) -> dict[int, Tag]:
    """The generations' tags that are what they should be, by number; what is wrong with the others is a failure."""
    names = sorted(name for name in known.objects if name.startswith(TAGS))
    contents = repository.read_objects(root, [known.objects[name] for name in names])
    found = {}
    for name, content in zip(names, contents, strict=True):
        short = name.removeprefix("refs/tags/")
        digits = name.removeprefix(TAGS)
        if not digits.isdigit() or tag_name(int(digits)) != short:
            findings.fail("tag", short, "it is not named as Flywheel names generations", f"`git tag -d {short}`")
            continue
        findings.count("tags")
        if content is None:
            findings.fail("tag", short, f"its object {known.objects[name][:12]} is missing or damaged", _AGAIN)
            continue
        kind, text = content
        wrong = _wrong(kind, text.decode("utf-8", "replace"), short, int(digits))
        if wrong is not None:
            findings.fail("tag", short, wrong, _AGAIN)
            continue
        found[int(digits)] = Tag(int(digits), known.objects[name], text[7 : text.index(b"\n")].decode())
    for number in sorted(set(range(max(found, default=-1))) - {int(name.removeprefix(TAGS)) for name in names
                                                              if name.removeprefix(TAGS).isdigit()}):  # fmt: skip
        findings.fail("tag", tag_name(number), "it is gone, although later generations have theirs", _AGAIN)
    return found


def _wrong(kind: str, text: str, name: str, generation: int) -> str | None:
    if kind != "tag":
        return f"it names a {kind} itself, expected an annotated tag, as publishing makes"
    pattern = r"object [0-9a-f]+\ntype commit\ntag (\S+)\ntagger [^\n]+\n\n([^\n]*)\n?"
    match = re.fullmatch(pattern, text)
    if match is None:
        return "its object is not the annotated tag that publishing makes"
    if match[1] != name:
        return f"its object was made as tag {match[1]}"
    if match[2] != f"Generation {generation}":
        return f"its message says {match[2]!r}, expected 'Generation {generation}'"
    return None


def check(
    registry: Registry,
    known: Refs,
    tags: dict[int, Tag],
    history: History,
    underway: Iterable[int],
    findings: Findings,
) -> None:
    """Commits against tags. `underway`: generations that a process is about to publish."""
    if not history.parents:
        return
    root = registry.root
    own = _own(known)
    others = [digest for name, digest in known.objects.items() if name.startswith("refs/remotes/")]
    reached = history.before(*own, *others)
    runs: dict[str, int] = {}
    for generation, tag in sorted(tags.items()):
        trailers = history.trailers.get(tag.commit, {})
        if trailers.get("Flywheel-Generation") != str(generation):
            said = trailers.get("Flywheel-Generation")
            what = f"says that it is of generation {said}" if said else "is of no generation"
            findings.fail("tag", tag.name, f"it was moved: its commit {tag.commit[:12]} {what}", _AGAIN)
            continue
        if tag.commit not in reached and not _is_on_a_branch(root, tag.commit):
            why = f"its commit {tag.commit[:12]} is on no branch: the tag was moved, or the branch set back"
            findings.fail("tag", tag.name, why, f"look at `git -C {root} reflog`; {_AGAIN}")
        run = trailers.get("Flywheel-Run", "")
        if not run or run in runs:
            why = f"its commit has the run id {run!r}" + (f", as {tag_name(runs[run])}" if run else ", expected one")
            findings.fail("tag", tag.name, why, _AGAIN)
        runs[run] = generation
        parent = trailers.get("Flywheel-Parent", "")
        if parent.isdigit() and int(parent) in tags and tags[int(parent)].commit not in history.before(tag.commit):
            why = f"its commit does not come after that of {tag_name(int(parent))}, from which it goes on"
            findings.fail("tag", tag.name, why, _AGAIN)
        _check_anchor(tags, generation, trailers, findings)
    _check_untagged(registry, known, tags, history, history.before(*own), set(underway), findings)
    _check_anchors_file(root, known, tags, findings)


def in_place(known: Refs, tags: dict[int, Tag], history: History) -> dict[int, Tag]:
    """The generations with the commits that published them, where a branch has just one that says so: what a tag that
    was moved or is gone should name. All else can be checked in peace then."""
    commits: dict[int, list[str]] = {}
    for commit in history.before(*_own(known)):
        said = history.trailers.get(commit, {}).get("Flywheel-Generation", "")
        if said.isdigit():
            commits.setdefault(int(said), []).append(commit)
    found = dict(tags)
    for generation, there in commits.items():
        # Beyond the newest tag: about to be published.
        if len(there) == 1 and generation <= max(tags, default=-1):
            held = tags.get(generation)
            found[generation] = Tag(generation, held.object if held is not None else "", there[0])
    return dict(sorted(found.items()))


def _own(known: Refs) -> list[str]:
    """Where this registry's branches, and HEAD, stand."""
    own = [digest for name, digest in known.objects.items() if name.startswith("refs/heads/")]
    return [*own, *([known.head] if known.head else [])]


def _is_on_a_branch(root: Path, commit: str) -> bool:
    """Asked anew: a run may have published between the reading of branches and of tags."""
    return bool(git.attempt(root, "for-each-ref", "--contains", commit, "refs/heads", "refs/remotes"))


def _check_anchor(tags: dict[int, Tag], generation: int, trailers: dict[str, str], findings: Findings) -> None:
    anchor, before = trailers.get("Flywheel-Previous-Tag"), tags.get(generation - 1)
    if anchor is None:
        return  # of registry version 1; `manifests` asks for it in others
    if generation == 0:
        findings.fail("tag", tag_name(0), "its commit names a tag before the first", _AGAIN)
    elif before is None:
        return  # said already
    elif before.object != anchor:
        why = (
            f"it was moved or made anew: its object is {before.object[:12]}, the commit of {tag_name(generation)} "
            f"holds {anchor[:12]}"
        )
        findings.fail("tag", before.name, why, _AGAIN)
    else:
        findings.count("anchors")


def _check_untagged(
    registry: Registry,
    known: Refs,
    tags: dict[int, Tag],
    history: History,
    reached: set[str],
    underway: set[int],
    findings: Findings,
) -> None:
    """Every commit that publishes a generation is the one its tag names: a tag that is gone is missed here."""
    # Asked anew, too.
    named = {*known.objects, *(f"refs/tags/{tag_name(number)}" for number in registry.generations())}
    for commit in reached:
        said = history.trailers.get(commit, {}).get("Flywheel-Generation", "")
        if not said.isdigit():
            continue
        generation = int(said)
        if generation in tags and tags[generation].commit != commit:
            other = tags[generation].commit[:12]
            why = f"it was moved: commit {commit[:12]} published that generation, the tag names {other}"
            findings.fail("tag", tag_name(generation), why, _AGAIN)
        elif f"refs/tags/{tag_name(generation)}" not in named and generation not in underway:
            why = f"it is gone, although commit {commit[:12]} published that generation"
            fix = f"if nothing else is wrong, `flywheel recover` sets the newest again; {_AGAIN}"
            findings.fail("tag", tag_name(generation), why, fix)


def _check_anchors_file(root: Path, known: Refs, tags: dict[int, Tag], findings: Findings) -> None:
    """`anchors.json`, which an upgrade writes: the tags there were then."""
    content = repository.read(root, [f"{known.head}:anchors.json"])[0] if known.head else None
    if content is None:
        return
    try:
        anchors = {str(name): str(digest) for name, digest in json.loads(content)["tags"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        findings.fail(
            "manifest", "anchors.json", f"it is not what an upgrade writes ({error!r})", "restore it with git"
        )
        return
    objects = {tag.name: tag.object for tag in tags.values()}
    for name, digest in anchors.items():
        if f"refs/tags/{name}" not in known.objects:
            findings.fail("tag", name, "it is gone, although anchors.json holds it", _AGAIN)
        elif name in objects and objects[name] != digest:
            why = f"it was moved or made anew: its object is {objects[name][:12]}, anchors.json holds {digest[:12]}"
            findings.fail("tag", name, why, _AGAIN)
        else:
            findings.count("anchors")


def check_rollbacks(root: Path, known: Refs, tags: dict[int, Tag], history: History, findings: Findings) -> None:
    """Each rollback's commit has just the recorded files of the generation that it went back to."""
    if known.head is None:
        return
    backs = []
    for commit in history.before(known.head):
        trailers = history.trailers.get(commit, {})
        target = trailers.get("Flywheel-Rollback", "")
        if not target:
            continue
        if not target.isdigit() or int(target) not in tags:
            findings.fail(
                "manifest", f"commit {commit[:12]}", f"it rolls back to gen/{target}, which has no tag", _AGAIN
            )
        else:
            backs.append((commit, tags[int(target)]))
    names = [f"{point}:{path}" for commit, tag in backs for point in (commit, tag.commit) for path in RECORDED]
    objects = repository.kinds(root, names)
    step = len(RECORDED)
    for index, (commit, tag) in enumerate(backs):
        after, wanted = (objects[start : start + step] for start in (2 * index * step, (2 * index + 1) * step))
        changed = [path for path, one, other in zip(RECORDED, after, wanted, strict=True) if one != other]
        if changed:
            why = f"it says that it goes back to {tag.name}, but its {', '.join(changed)} differ from that generation's"
            findings.fail("manifest", f"commit {commit[:12]}", why, f"`flywheel rollback {tag.name}` makes it so again")
