"""Git as a child process: plain commands on one repository, free of the user's hooks, signing and filters.

Nothing here knows about generations. Children inherit the registry's lock (`storage.lock`), so that one that outlives
its parent still keeps other writers out, and they run in a session of their own, so that Ctrl-C at the terminal reaches
Flywheel and not a half-written index.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from flywheel.errors import FlywheelError, InputError, StorageFull
from storage import lock

OLDEST_VERSION = (2, 28)
"""`git init -b` and `git restore`."""

_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.autocrlf": "false",
    "core.safecrlf": "false",
    "core.excludesFile": "/dev/null",
    "core.attributesFile": "/dev/null",
    "core.fsmonitor": "false",
    "core.quotePath": "false",
    "commit.gpgSign": "false",
    "tag.gpgSign": "false",
    "trailer.separators": ":",
    "color.ui": "false",
    # A detached gc would inherit the registry's lock and hold it.
    "gc.autoDetach": "false",
    "maintenance.autoDetach": "false",
}
_FLAGS = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
_FOREIGN = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_NAMESPACE"}


def environment(**extra: str) -> dict[str, str]:
    """The environment for git and DVC children: English messages, no prompts, no other repository's variables."""
    kept = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    return {**kept, "LC_ALL": "C.UTF-8", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", **extra}


def run_bytes(root: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run `git <arguments>` in `root`; its standard output. Raises FlywheelError with git's own words."""
    result = _execute(root, arguments, stdin)
    if result.returncode != 0:
        raise failed("git", root, arguments, result)
    return result.stdout


def run(root: Path, *arguments: str, stdin: str = "") -> str:
    """As `run_bytes`, as text without the last newline."""
    return run_bytes(root, *arguments, stdin=stdin.encode()).decode("utf-8", "replace").rstrip("\n")


def attempt(root: Path, *arguments: str) -> str | None:
    """As `run`, but None where git answers with an exit status other than 0. One that was killed has not answered:
    FlywheelError."""
    result = _execute(root, arguments, b"")
    if result.returncode < 0 or result.returncode == 128 + signal.SIGKILL:
        raise failed("git", root, arguments, result)
    return result.stdout.decode("utf-8", "replace").rstrip("\n") if result.returncode == 0 else None


def _execute(root: Path, arguments: tuple[str, ...], stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        with lock.lent(root) as descriptors:
            return subprocess.run(
                ["git", *_FLAGS, *arguments],
                cwd=root,
                input=stdin,
                capture_output=True,
                check=False,
                env=environment(),
                pass_fds=descriptors,
                start_new_session=True,
            )
    except FileNotFoundError:
        if root.is_dir():
            raise InputError(no_git()) from None
        raise FlywheelError(f"the folder {root} went away while git was to run in it") from None


def no_git() -> str:
    return "got no `git` on the PATH; Flywheel keeps generations in git: install it (e.g. `apt install git`)"


def failed(
    program: str, root: Path, arguments: tuple[str, ...], result: subprocess.CompletedProcess[bytes]
) -> FlywheelError:
    """The error for a child that answered with `result`."""
    words = (result.stderr or result.stdout).decode("utf-8", "replace").strip()
    if "No space left on device" in words or "Disk quota exceeded" in words:
        return StorageFull(f"no space left while `{program} {arguments[0]}` wrote to {root}; free some and run again")
    what = " ".join(arguments)
    return FlywheelError(f"`{program} {what}` failed in {root} with status {result.returncode}: {words}")


def check_version(folder: Path) -> None:
    """Raise InputError where git is missing or older than OLDEST_VERSION."""
    if shutil.which("git") is None:
        raise InputError(no_git())
    words = run(folder, "version").split()
    got = words[2] if len(words) > 2 else "?"
    numbers = tuple(int(part) for part in got.split(".")[:2] if part.isdigit())
    if len(numbers) == 2 and numbers < OLDEST_VERSION:
        expected = ".".join(map(str, OLDEST_VERSION))
        raise InputError(f"got git {got}, expected {expected} or newer; please upgrade git")


def identity(folder: Path) -> tuple[str, str]:
    """Name and e-mail that commits made in `folder` would carry. Raises InputError where none is configured."""
    text = attempt(folder, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT")
    if not text:
        raise InputError(
            "git has no identity to commit with; tell it once who you are:\n"
            '  git config --global user.name "Your Name"\n'
            '  git config --global user.email "you@example.org"'
        )
    name, _, rest = text.partition(" <")
    return name, rest.partition(">")[0]


def read_many(root: Path, names: list[str]) -> list[bytes | None]:
    """Contents of `REVISION:path` objects by one `git cat-file --batch`; None for each that does not exist."""
    if not names:
        return []
    if bad := [name for name in names if "\n" in name]:
        # One line more, and every later answer would be taken for another name's.
        raise FlywheelError(f"git cannot be asked for {bad[0]!r}, a name with a line break")
    output = run_bytes(root, "cat-file", "--batch", stdin="".join(f"{name}\n" for name in names).encode())
    found: list[bytes | None] = []
    position = 0
    for _ in names:
        end = output.index(b"\n", position)
        header = output[position:end].split(b" ")
        position = end + 1
        if header[-1] in {b"missing", b"ambiguous"}:
            found.append(None)
            continue
        size = int(header[-1])
        found.append(output[position : position + size])
        position += size + 1
    return found


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit with its trailers."""

    sha: str
    trailers: dict[str, str]


def parse_trailers(text: str) -> dict[str, str]:
    """`Key: value` lines as a mapping."""
    pairs = (line.split(": ", 1) for line in text.splitlines() if ": " in line)
    return {key.strip(): value.strip() for key, value in pairs}


def commits_with(root: Path, *trailers: str, newest: int | None = None) -> list[Commit]:
    """Commits of HEAD's first-parent line that carry one of `trailers`, newest first."""
    if attempt(root, "rev-parse", "-q", "--verify", "HEAD^{commit}") is None:
        return []
    limit = [f"--max-count={newest}"] if newest is not None else []
    form = "--format=%H%n%(trailers:only,unfold)%x00"
    text = run(root, "log", "--first-parent", *limit, *(f"--grep=^{name}: " for name in trailers), form, "HEAD")
    commits = []
    for record in text.split("\0"):
        sha, _, body = record.strip().partition("\n")
        if sha:
            commits.append(Commit(sha, parse_trailers(body)))
    return [commit for commit in commits if any(name in commit.trailers for name in trailers)]


def message(subject: str, trailers: dict[str, str]) -> str:
    """A commit message: subject, empty line, trailers (each value on one line)."""
    lines = [f"{key}: {' '.join(value.split())}" for key, value in trailers.items()]
    return "\n".join([" ".join(subject.split()), "", *lines]) + "\n"
