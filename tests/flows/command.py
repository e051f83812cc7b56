"""The command line as a user meets it: a process of its own, its output and its exit code."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SECONDS = 240
_PRELOADED = multiprocessing.get_context("forkserver")
_PRELOADED.set_forkserver_preload(["transformers.models.llama.modeling_llama", "transformers.trainer"])
"""Most of what a command takes is to import torch, transformers and what they bring along, some 8 s of processor time:
here they are imported once, and a command is a fork. Our own packages, Prefect, MLflow and DVC are imported anew."""


def environment(**extra: str) -> dict[str, str]:
    """The tests' environment with an identity for git and no server of the user's."""
    held = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "FLYWHEEL_"))}
    name, mail = "Flywheel Tests", "tests@flywheel.invalid"
    return {
        **held, "GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": mail, "GIT_COMMITTER_NAME": name,
        "GIT_COMMITTER_EMAIL": mail, **extra,
    }  # fmt: skip


def flywheel(
    *arguments: str | Path, code: int = 0, cwd: Path | None = None, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run `flywheel <arguments>`; the test fails unless it exits with `code`.

    `fresh`: by an interpreter of its own, as a user would, not by a fork. Of two runs that must agree one is: forks of
    one process share the seed of string hashes, so that sets have the same order in all of them.
    """
    told = [str(argument) for argument in arguments]
    if fresh:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *told], capture_output=True, text=True, env=environment(), cwd=cwd,
            stdin=subprocess.DEVNULL, timeout=_SECONDS, check=False,
        )  # fmt: skip
    else:
        done = _forked(told, cwd or Path.cwd())
    assert done.returncode == code, f"exit {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}"
    return done


def _forked(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        out.touch()
        err.touch()
        process = _PRELOADED.Process(target=_become, args=(arguments, environment(), cwd, out, err))
        process.start()
        try:
            process.join(_SECONDS)
            late = process.is_alive()
        finally:
            # Left alive it would hold up the end of the tests.
            process.kill()
            process.join()
        said = [path.read_text(encoding="utf-8") for path in (out, err)]
    assert not late, f"not done after {_SECONDS} s\n{said[0]}\n{said[1]}"
    assert process.exitcode is not None
    return subprocess.CompletedProcess(arguments, process.exitcode, *said)


def _become(arguments: list[str], environment: dict[str, str], cwd: Path, out: Path, err: Path) -> None:
    """Turn this process into `python -m flows.cli <arguments>`."""
    for target, path, flags in ((0, Path(os.devnull), os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        descriptor = os.open(path, flags)
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path.insert(0, str(cwd))
    sys.argv = ["flywheel", *arguments]
    try:
        runpy.run_module("flows.cli", run_name="__main__", alter_sys=True)
    finally:
        # As an interpreter ends: its threads, then these, which multiprocessing leaves out.
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()


def flywheel_json(*arguments: str | Path, fresh: bool = False) -> Any:
    """The one document that `--json` puts on stdout."""
    return json.loads(flywheel(*arguments, "--json", fresh=fresh).stdout)


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start `flywheel <arguments>` and return at once."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
    )  # fmt: skip


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait for a condition; the test fails if it does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def progress(registry: Path) -> tuple[int, str, int]:
    """(generation, stage, done) that the campaign says it is at; (-1, "", 0) while it says nothing."""
    try:
        step = json.loads((registry / ".flywheel" / "progress.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return (-1, "", 0)
    return (step["generation"], step["stage"], step["done"])


def made(registry: Path) -> dict[str, Any]:
    """What the generations of a registry are made of, by digest: everything that the same recipe must give again."""
    found = {}
    for path in sorted((registry / "lineage").glob("[0-9]*.json")):
        lineage = json.loads(path.read_text(encoding="utf-8"))
        found[path.stem] = {
            name: lineage[name] for name in ("tables", "outputs", "student", "champion", "teacher", "flops", "labels")
        }
    return found


def made_again_by_hand(registry: Path, clone: Path) -> tuple[str, str, str]:
    """A registry's newest generation made again in a clone, by DVC alone: what dvc.lock recorded, what it says then,
    and what `dvc repro` said."""
    subprocess.run(["git", "clone", "-q", registry, clone], check=True)

    def dvc(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "dvc", *arguments],
            cwd=clone, capture_output=True, text=True, check=False,
            env=environment(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    dvc("cache", "dir", "--local", str(registry / ".dvc" / "cache"))
    dvc("checkout", "-q", "parent.dvc")
    recorded = (clone / "dvc.lock").read_text(encoding="utf-8")
    log = dvc("repro", "--force", "--no-run-cache")
    return recorded, (clone / "dvc.lock").read_text(encoding="utf-8"), log
