"""The registry: a git and DVC repository of its own, one commit and one tag a generation.

Here: making one, opening one, what it holds, and whether its tracked files are as Flywheel left them. Writing to it is
`storage.prepare`, `storage.publish` and `storage.rollback`, all under `storage.lock`.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flywheel.errors import InputError, RegistryBusy, RegistryError
from flywheel.params import Params, dump
from storage import dvc, git
from storage.draft import Draft, drafted, own_identity
from storage.layout import DVC_IGNORED, OUTPUTS, REGISTRY_VERSION, SUPERVISED, Layout, tag_name

RECORDED = (
    ".gitignore", "dvc.yaml", "dvc.lock", "parent.dvc", "judge.dvc", "params.yaml", "metrics.json", "lineage",
)  # fmt: skip
"""What a generation's commit holds and a rollback restores; the ledger, committed too, keeps what was spent."""
SHARED = ("dvc.yaml", ".gitignore")
"""Those that a user may edit and commit too; what Flywheel writes into them is noted before."""
IN_PROGRESS = re.compile(
    r"(params\.yaml|(parent|judge)\.dvc|metrics\.json|dvc\.lock"
    r"|lineage/(teacher|champion|window|judge|tried|\d{4,})\.json|ledger/\d{4,}\.jsonl)"
)
_TEMPORARY = ".*." + "[0-9a-f]" * 8
"""What `storage.tables` calls a file it has not finished."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry at `root`, an absolute path without symbolic links."""

    root: Path

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    @staticmethod
    def init(root: Path, params: Params, recipe: str, preset: str) -> Registry:
        """Make a registry: `params` as params.yaml, `recipe` as dvc.yaml, one first commit on branch `main`.

        It is built beside `root` and renamed, so that a failure leaves nothing behind. Raises RegistryError for a
        folder that is one already or that holds something else, InputError without git or a git identity.
        """
        root = Path(os.path.realpath(root))
        if (root / "flywheel.json").exists():
            raise RegistryError(f"{root} is a registry already; use it, or name another folder with --registry")
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise RegistryError(f"{root} exists and is not an empty folder; name a new one with --registry")
        with drafted(root, "init") as draft:
            _build(draft, params, recipe, preset)
        return Registry(root)

    @staticmethod
    def open(root: Path) -> Registry:
        """The registry at `root`. Raises RegistryError if it is missing, foreign, damaged or of a newer version, and
        RegistryBusy if git stands on no branch."""
        root = Path(os.path.realpath(root))
        marker = root / "flywheel.json"
        if not root.exists():
            raise RegistryError(f"there is no registry at {root}; make one with `flywheel init --registry {root}`")
        if not marker.is_file():
            raise RegistryError(
                f"{root} is not a registry (it has no flywheel.json); "
                "point --registry at one, or make one in a new folder with `flywheel init`"
            )
        try:
            version = json.loads(marker.read_text(encoding="utf-8"))["registry_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryError(
                f"{marker} is damaged ({error}); restore it: `git -C {root} restore {marker.name}`"
            ) from error
        if not isinstance(version, int) or version > REGISTRY_VERSION:
            raise RegistryError(
                f"{root} has registry version {version}, this Flywheel reads up to {REGISTRY_VERSION}; upgrade Flywheel"
            )
        if not (root / ".git").exists():
            raise RegistryError(
                f"{root} has a flywheel.json but no git repository of its own; restore .git from a copy"
            )
        if git.attempt(root, "symbolic-ref", "-q", "HEAD") is None:
            raise RegistryBusy(
                f"conflict: git in {root} stands on no branch (a detached HEAD), so a new generation would be lost; "
                f"return to the branch with `git -C {root} switch main` (a rollback is `flywheel rollback gen/N`)"
            )
        return Registry(root)

    def version(self) -> int:
        """The registry version that flywheel.json states."""
        return int(json.loads(self.layout.marker.read_text(encoding="utf-8"))["registry_version"])

    def require_newest_version(self) -> None:
        """Raise RegistryError for a registry of an earlier version, which is read but not written."""
        if (version := self.version()) < REGISTRY_VERSION:
            raise RegistryError(
                f"{self.root} has registry version {version}; to go on in it, bring it to {REGISTRY_VERSION} with "
                "`flywheel upgrade` (`flywheel upgrade --undo` takes that back); reading it needs nothing"
            )

    def generations(self) -> list[int]:
        """Published generations: those with a tag, in order."""
        names = git.run(self.root, "for-each-ref", "--format=%(refname:short)", "refs/tags/gen/").split()
        return sorted(int(name[4:]) for name in names if name[4:].isdigit())

    def head_generation(self) -> int | None:
        """The published generation that HEAD stands for, also after a rollback; None before the first."""
        text = git.attempt(self.root, "show", "HEAD:params.yaml")
        values = yaml.safe_load(text) if text else None
        if not isinstance(values, dict):
            raise RegistryError(f"{self.root} has no params.yaml at HEAD; restore it from an older commit")
        published = self.generations()
        # A commit whose tag is still missing is not published yet; its parent is.
        for generation in (values.get("generation"), values.get("parent")):
            if isinstance(generation, int) and generation in published:
                return generation
        return None

    def next_generation(self) -> int:
        """The number of the next new generation: one above the highest tag; numbers are never used again."""
        return max(self.generations(), default=-1) + 1

    def check_clean(self) -> None:
        """Raise RegistryBusy if tracked files differ from HEAD other than a generation in progress makes them."""
        text = git.run(self.root, "status", "--porcelain=v1", "-z", "--untracked-files=no", "--no-renames")
        entries = [(entry[:2], entry[3:]) for entry in text.split("\0") if entry]
        unmerged = [path for code, path in entries if "U" in code or code in {"AA", "DD"}]
        if unmerged or (self.root / ".git" / "MERGE_HEAD").exists():
            raise RegistryBusy(
                f"conflict: an unfinished merge in {self.root} ({', '.join(unmerged) or 'not committed'}); "
                f"end it with `git -C {self.root} merge --abort`"
            )
        entry = read_state(self).get("unfinished")
        in_progress = entry is not None and entry["generation"] not in self.generations()
        edited = [
            path
            for code, path in entries
            # Something newly staged is nobody's loss: our commits name their paths.
            if code != "A " and not (in_progress and (IN_PROGRESS.fullmatch(path) or self.wrote(entry or {}, path)))
        ]
        if edited:
            names = " ".join(edited)
            raise RegistryBusy(
                f"conflict: changed by hand in {self.root} and not committed: {', '.join(edited)}; "
                f"keep that with `git -C {self.root} commit -m 'My change' -- {names}`, "
                f"or drop it with `git -C {self.root} restore --staged --worktree {names}`"
            )

    def wrote(self, entry: dict[str, Any], path: str) -> bool:
        """Whether a file that is ours and the user's holds what the generation in progress wrote."""
        from storage.tables import file_md5  # brings pyarrow, which history does not need

        noted = entry.get("wrote") or []
        return path in SHARED and (self.root / path).is_file() and file_md5(self.root / path) in noted


def read_state(registry: Registry) -> dict[str, Any]:
    """`.flywheel/state.json`: {"unfinished": a generation in progress, "rollback": one under way}; {} at rest."""
    path = registry.layout.state
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RegistryError(f"{path} is damaged ({error}); remove it: published generations do not need it") from error
    if not isinstance(state, dict):
        raise RegistryError(f"{path}: got {type(state).__name__}, expected an object; remove it")
    return state


def write_state(registry: Registry, **changes: Any) -> None:
    """Change entries of the state in one step; None removes one."""
    from storage.tables import replace_text

    state = {**read_state(registry), **changes}
    kept = {key: value for key, value in state.items() if value is not None}
    replace_text(registry.layout.state, json_text(kept))


def json_text(value: Any) -> str:
    """JSON as git keeps it here: sorted, indented by one, a newline at the end; the same value gives the same bytes."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def ignored_lines(folders: Iterable[str]) -> str:
    """Lines of `.gitignore` for folders that DVC keeps."""
    return "".join(f"/{name}/\n" for name in folders)


def recorded_paths(registry: Registry, source: str | None = None) -> list[str]:
    """Those of RECORDED that the index has, or the commit `source` (None: the worktree); git takes no others."""
    known = {path.partition("/")[0] for path in git.run(registry.root, "ls-files", "--", *RECORDED).split("\n")}
    if source is None:
        known |= {path for path in RECORDED if (registry.root / path).exists()}
    else:
        known |= set(git.run(registry.root, "ls-tree", "--name-only", source, "--", *RECORDED).split("\n"))
    return [path for path in RECORDED if path in known]


def require_generation(registry: Registry, generation: int) -> str:
    """The tag of a published generation. Raises InputError that names those there are."""
    known = registry.generations()
    if generation not in known:
        names = ", ".join(tag_name(number) for number in known[-10:]) or "none yet"
        raise InputError(
            f"got {tag_name(generation)}, which was never published in {registry.root}; there are: {names}"
        )
    return tag_name(generation)


def _build(made: Draft, params: Params, recipe: str, preset: str) -> None:
    draft = made.folder
    draft.mkdir()
    git.run(draft, "init", "-q", "-b", "main", "--template=")
    own_identity(made)
    marker = {"registry_version": REGISTRY_VERSION, "preset": preset, "registry_id": uuid.uuid4().hex}
    files = {
        "flywheel.json": json_text(marker),
        "params.yaml": dump(params),
        "dvc.yaml": recipe,
        ".gitignore": f"/.flywheel/\n{ignored_lines(('parent', *OUTPUTS, *SUPERVISED, 'judge'))}{_TEMPORARY}\n",
        ".gitattributes": "* -text\n",
        ".dvcignore": DVC_IGNORED,
        ".dvc/config": dvc.CONFIG.format(types=dvc.LINKS),
        ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    }
    for path, text in files.items():
        (draft / path).parent.mkdir(exist_ok=True)
        (draft / path).write_text(text, encoding="utf-8")
    (draft / ".dvc" / "tmp").mkdir()
    (draft / ".flywheel").mkdir()
    if can_reflink(draft / ".flywheel"):
        local = f'[cache]\n    type = "reflink,{dvc.LINKS}"\n'
        (draft / ".dvc" / "config.local").write_text(local, encoding="utf-8")
    git.run(draft, "add", "--", *files)
    git.run(draft, "commit", "-q", "-F", "-", stdin=f"Make the registry from preset {preset}\n")


def can_reflink(folder: Path) -> bool:
    """Whether the file system shares blocks between files (btrfs, XFS); elsewhere DVC's `reflink` would mean copies."""
    import fcntl

    source, target = folder / "probe-source", folder / "probe-target"
    try:
        with source.open("wb") as old, target.open("wb") as new:
            old.write(b"0" * 4096)
            old.flush()
            fcntl.ioctl(new.fileno(), 0x40049409, old.fileno())  # FICLONE
    except OSError:
        return False
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    return True
