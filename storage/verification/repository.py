"""Git itself: every object, every ref and the index, read with git's own checker and, where it trusts files, by hand.

What generations say is none of its business. All that follows is read under the names that refs had here, once, so that
a run which publishes meanwhile is not seen half-way.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from flywheel.errors import FlywheelError
from storage import git
from storage.verification.findings import Findings

TAGS = "refs/tags/gen/"
_OBJECT = re.compile(r"\b[0-9a-f]{40}(?:[0-9a-f]{24})?\b")
_STORED = re.compile(r"\S*/objects/\S+")
_LOOSE_REF = re.compile(rb"(?:ref: refs/[^\n]+|[0-9a-f]{40}|[0-9a-f]{64})\n")
_PACKED_HEAD = re.compile(r"# pack-refs with:(?: (?:peeled|fully-peeled|sorted))* ?")
_PACKED_LINE = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64}) (refs/[^\s\\]+)")
_ELSEWHERE = "bring a sound copy from a clone or a backup: `git fetch --tags COPY` there, or copy its .git"


_MOST_ARGUMENTS = 20_000
"""Beyond them git is left to start from what refs name then."""


@dataclass(frozen=True, slots=True)
class Refs:
    """What each ref named when the verification began. `head`: the commit HEAD stands for; None before the first."""

    head: str | None
    objects: dict[str, str]

    @property
    def starts(self) -> list[str]:
        """All objects that something names, generations' tags first, oldest first."""
        tags = sorted(name for name in self.objects if name.startswith(TAGS))
        named = [self.objects[name] for name in [*tags, *(name for name in self.objects if name not in tags)]]
        return list(dict.fromkeys([*named, *([self.head] if self.head else [])]))


def refs(root: Path) -> Refs:
    """Raises FlywheelError where git does not take the folder for a repository of its own."""
    top = Path(git.run(root, "rev-parse", "--show-toplevel"))
    if top.resolve() != root.resolve():
        # Where .git is damaged, git goes on to look in the folders above.
        raise FlywheelError(f"git takes {top} for the repository, so {root / '.git'} is damaged")
    lines = git.run(root, "for-each-ref", "--format=%(objectname) %(refname)").splitlines()
    named = {name: digest for digest, _, name in (line.partition(" ") for line in lines)}
    return Refs(git.attempt(root, "rev-parse", "-q", "--verify", "HEAD"), named)


def read(root: Path, names: list[str]) -> list[bytes | None]:
    """As `git.read_many`; None too for an object that git cannot read."""
    try:
        return git.read_many(root, names)
    except (FlywheelError, ValueError, IndexError):  # cut off at a damaged object
        return [_read_one(root, name) for name in names]


def _read_one(root: Path, name: str) -> bytes | None:
    try:
        return git.read_many(root, [name])[0]
    except (FlywheelError, ValueError, IndexError):
        return None


def read_objects(root: Path, digests: list[str]) -> list[tuple[str, bytes] | None]:
    """(kind, content) of each object; None for one that git cannot read."""
    found = kinds(root, digests)
    return [
        (told[1], content) if told is not None and content is not None else None
        for told, content in zip(found, read(root, digests), strict=True)
    ]


def kinds(root: Path, names: list[str]) -> list[tuple[str, str] | None]:
    """(object id, kind) of each `REVISION` or `REVISION:path`; None where git has no such object, or cannot read it."""
    try:
        return _kinds(root, names)
    except FlywheelError:  # cut off at a damaged object
        return [
            None if git.attempt(root, "cat-file", "-t", name) is None else _kinds(root, [name])[0] for name in names
        ]


def _kinds(root: Path, names: list[str]) -> list[tuple[str, str] | None]:
    if not names:
        return []
    form = "cat-file", "--batch-check=%(objectname) %(objecttype)"
    text = git.run(root, *form, stdin="".join(f"{name}\n" for name in names))
    found: list[tuple[str, str] | None] = []
    for line in text.splitlines():
        digest, _, kind = line.rpartition(" ")
        found.append(None if kind in {"missing", "ambiguous"} else (digest, kind))
    return found


def check(root: Path, known: Refs, findings: Findings) -> None:
    """Every object is sound and there, from all refs on; every ref and the index are as git writes them."""
    folder = root / git.run(root, "rev-parse", "--git-common-dir")
    _check_history_is_whole(root, folder, known, findings)
    _check_named(root, folder, known, findings)
    _check_objects(root, known, findings)
    check_refs(root, folder, findings)
    _check_index(root, findings)
    counts = dict(line.split(": ") for line in git.run(root, "count-objects", "-v").splitlines())
    findings.count("git_objects", int(counts["count"]) + int(counts["in-pack"]))


def _check_history_is_whole(root: Path, folder: Path, known: Refs, findings: Findings) -> None:
    """Git shows another history than the objects hold where one is replaced, grafted or cut short."""
    if known.head is None:
        findings.fail("git", ".git/HEAD", "HEAD stands for no commit", f"`git -C {root} switch main`, or {_ELSEWHERE}")
    for name in known.objects:
        if name.startswith("refs/replace/"):
            findings.fail(
                "git",
                name,
                f"it makes git show another object in place of {name.rpartition('/')[2][:12]}",
                f"`git -C {root} replace -d {name.rpartition('/')[2]}`",
            )
    if (folder / "info" / "grafts").exists():
        findings.fail("git", ".git/info/grafts", "it gives commits other parents than they have", "remove it")
    if (folder / "shallow").exists():
        findings.fail(
            "git",
            ".git/shallow",
            "this is a shallow clone, older generations are cut off",
            f"`git -C {root} fetch --unshallow --tags`",
        )


def _check_named(root: Path, folder: Path, known: Refs, findings: Findings) -> None:
    """Each ref names an object that is there."""
    for (name, digest), found in zip(known.objects.items(), kinds(root, list(known.objects.values())), strict=True):
        if found is None:
            where = f".git/{name}" if (folder / name).exists() else ".git/packed-refs"
            why = f"{name} names object {digest[:12]}, which is missing or damaged"
            findings.fail("git", where, why, _set_again(root, name))


def _check_objects(root: Path, known: Refs, findings: Findings) -> None:
    """By `git fsck`: it unpacks and hashes every object, loose or packed, then follows all that refs name."""
    # Given what to start from, it neither sees refs that a run makes meanwhile nor trips over their objects.
    options = ("--full", "--strict", "--no-dangling", "--no-progress", "--name-objects")
    starts = known.starts
    # What it finds goes to either stream.
    result = subprocess.run(
        ["git", "--no-replace-objects", "fsck", *options, *(starts if len(starts) < _MOST_ARGUMENTS else [])],
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        env=git.environment(),
    )
    status, text = result.returncode, result.stdout.decode("utf-8", "replace")
    if status == 0:
        return
    names = {digest: name.removeprefix("refs/").removeprefix("tags/") for name, digest in known.objects.items()}
    told: dict[str, list[str]] = {}
    for line in text.splitlines():
        place = _place(root, line)
        words = line.strip().removeprefix("error: ").removeprefix("fatal: ").replace(f"{root}/", "")
        if words.startswith(("broken link from", "to ", "notice: ", "warning: ")):
            continue  # what is at its end is named on a line of its own
        words = _OBJECT.sub(lambda match: names.get(match[0], match[0]), words)
        if place is not None and words not in told.setdefault(place, []):
            told[place].append(words)
    for place, lines in told.items():
        findings.fail("git", place, "; ".join(lines[:4]), _ELSEWHERE)
    if not told:
        findings.fail(
            "git", ".git/objects", f"`git fsck` ended with status {status}: {text.strip()[-300:]}", _ELSEWHERE
        )


def _place(root: Path, line: str) -> str | None:
    """Where the object that a line of fsck's tells of lies, as far as it says so."""
    if stored := _STORED.search(line):
        path = stored[0].strip("'\":,()")
        return path.removeprefix(f"{root}/")
    if found := _OBJECT.search(line):
        loose = f".git/objects/{found[0][:2]}/{found[0][2:]}"
        return loose if (root / loose).exists() or "missing" in line else f"git object {found[0]}"
    return None


def check_refs(root: Path, folder: Path, findings: Findings) -> None:
    """Files that hold refs are as git writes them. Where they are not, git may not work at all, or not see a ref."""
    if folder.is_dir() and not (folder / "reftable").exists():
        _check_loose_refs(root, folder, findings)
        _check_packed_refs(root, folder, findings)


def _check_loose_refs(root: Path, folder: Path, findings: Findings) -> None:
    for path in [folder / "HEAD", *sorted(path for path in (folder / "refs").rglob("*") if path.is_file())]:
        if path.suffix == ".lock":
            continue  # a writer at work
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # packed meanwhile
            continue
        if not _LOOSE_REF.fullmatch(content):
            name = path.relative_to(folder).as_posix()
            why = f"it holds {content[:50]!r}, expected an object id"
            findings.fail("git", f".git/{name}", why, _set_again(root, name))


def _check_packed_refs(root: Path, folder: Path, findings: Findings) -> None:
    try:
        text = (folder / "packed-refs").read_bytes().decode("utf-8", "backslashreplace")
    except FileNotFoundError:
        return
    lines, before = text.split("\n"), ""
    wrong = [] if lines.pop() == "" else ["it does not end with a line"]
    if lines and lines[0].startswith("#") and not _PACKED_HEAD.fullmatch(lines.pop(0)):
        wrong.append("its first line is not git's")
    peeled: list[tuple[str, str]] = []
    for line in lines:
        if line.startswith("^") and before and _OBJECT.fullmatch(line[1:]):
            peeled.append((before, line[1:]))
            continue
        match = _PACKED_LINE.fullmatch(line)
        if match is None or match[1] <= before:
            wrong.append(f"got the line {line[:120]!r}, expected an object id and a ref, in order of name")
            continue
        before = match[1]
    # Readers take the commit of a tag from here and do not look at the tag.
    targets = {line.partition(" ")[2]: line.partition(" ")[0] for line in lines if _PACKED_LINE.fullmatch(line)}
    for (name, commit), found in zip(peeled, kinds(root, [f"{targets[n]}^{{}}" for n, _ in peeled]), strict=True):
        if found is not None and found[0] != commit:
            wrong.append(f"it says that {name} is of commit {commit[:12]}, the tag itself says {found[0][:12]}")
    for why in wrong:
        findings.fail("git", ".git/packed-refs", why, _ELSEWHERE)


def _set_again(root: Path, name: str) -> str:
    return f"set it again from a clone: `git -C {root} fetch COPY +{name}:{name}`"


def _check_index(root: Path, findings: Findings) -> None:
    """The index ends with its own digest, which git does not look at."""
    path = root / git.run(root, "rev-parse", "--git-path", "index")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    form = git.attempt(root, "rev-parse", "--show-object-format") or "sha1"
    size = hashlib.new(form, usedforsecurity=False).digest_size
    kept = content[-size:]
    # All zeros: git was told to leave it out.
    if any(kept) and hashlib.new(form, content[:-size], usedforsecurity=False).digest() != kept:
        why = "it does not hash to the digest at its end"
        findings.fail("git", ".git/index", why, f"`rm {path}; git -C {root} reset`")
