"""A registry on a second machine: cloned, gone on in, sent back; and what a source must not be able to do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flywheel.errors import FlywheelError, InputError, RegistryError
from storage import contents, dvc, exchange, gc, remote_settings, remotes, views
from storage.clone import clone
from storage.history import history
from storage.registry import Registry
from tests.storage import sample
from tests.storage.stores import S3, cached, leftovers
from tests.storage.stores import s3 as s3
from tests.storage.stores import service as service

Fresh = Callable[[int], Registry]


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def test_a_second_machine_goes_on_and_the_first_follows(
    fresh: Fresh, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fresh(4)
    exchange.push(first, s3.url, str(tmp_path / "history.git"), s3.endpoint)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    target = tmp_path / "far" / "away"
    done = clone(str(tmp_path / "history.git"), target, at=1)
    assert (done["generations"], done["head"], done["remote"]) == (4, 3, s3.url)
    second = Registry.open(target)
    # The head's folders and those of gen/1, and not the rest; to the byte.
    held = cached(first)
    brought = cached(second)
    assert brought.items() <= held.items()
    whole = contents.expand(first, {md5 for one in contents.of(first, [1, 3]).values() for md5 in one.roots()})[0]
    heavy = {file["md5"] for file in contents.of(first, [0])[0].tables["attempts"]}
    assert whole <= set(brought)
    assert not heavy & set(brought)
    assert done["objects"] == len(brought)
    assert git(target, "status", "--porcelain") == ""
    assert json.loads(dvc.run(second, "status", "--json")) == {}
    assert json.loads((target / ".flywheel" / "cloned.json").read_text(encoding="utf-8")) == {
        "from": str(tmp_path / "history.git"),
        "trusted": False,
    }
    assert [{**row, "mlflow_run": None, "prefect_flow_run": None} for row in history(first)] == history(second)
    # It goes on, and sends; the first takes it in and goes on too.
    assert sample.make_generation(second).generation == 4
    assert exchange.push(second)["history"]["tags"] == ["gen/0004"]
    assert exchange.pull(first)["history"]["tags"] == ["gen/0004"]
    assert git(first.root, "rev-parse", "main", "gen/0004") == git(target, "rev-parse", "main", "gen/0004")
    assert sample.make_generation(first).parent == 4


def test_the_folder_of_a_registry_serves_with_its_cache(fresh: Fresh, tmp_path: Path) -> None:
    first = fresh(4)
    before = {path: path.stat().st_mtime_ns for path in first.root.rglob("*") if ".git" not in path.parts}
    done = clone(str(first.root), tmp_path / "second")
    second = Registry.open(tmp_path / "second")
    assert done["remote"] == str(first.root / ".dvc" / "cache")
    assert not set(cached(second)) >= set(cached(first))
    rows = list(views.query(second, "SELECT attempt_id FROM attempts ORDER BY 1").rows)
    assert rows == list(views.query(first, "SELECT attempt_id FROM attempts ORDER BY 1").rows)
    # What is made here stays here: the source is read only.
    sample.make_generation(second)
    with pytest.raises(InputError, match="no remote is named for the data"):
        exchange.push(second)
    assert gc.plan(second, 1).document()["dropped"]["objects"] == 0
    with pytest.raises(InputError, match=r"only at remote 'source' .*flywheel pull --all"):
        exchange.push(second, str(tmp_path / "data"), str(tmp_path / "history.git"))
    assert remotes.bring(second, contents.everything(second).flywheels, "all") > 0
    exchange.push(second, str(tmp_path / "data"), str(tmp_path / "history.git"))
    after = {path: path.stat().st_mtime_ns for path in first.root.rglob("*") if ".git" not in path.parts}
    assert after == before


def test_a_clone_of_a_registry_without_generations(fresh: Fresh, tmp_path: Path) -> None:
    done = clone(str(fresh(0).root), tmp_path / "second")
    assert (done["generations"], done["head"], done["objects"]) == (0, None, 0)
    assert sample.make_generation(Registry.open(tmp_path / "second")).generation == 0


def test_nothing_is_left_of_a_clone_that_fails(fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fresh(1)
    bare = tmp_path / "history.git"
    exchange.push(first, str(tmp_path / "data"), str(bare))
    target = tmp_path / "new" / "second"
    # The address of the data means something on the first machine only.
    with pytest.raises(RegistryError, match=r"names no remote for its data.*--remote URL"):
        clone(str(bare), target)
    with pytest.raises(RegistryError, match=r"nowhere.*is its disk mounted"):
        clone(str(bare), target, remote=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"gen/0009, which was never published"):
        clone(str(bare), target, at=9, remote=str(tmp_path / "data"))
    with pytest.raises(FlywheelError, match="SOURCE must be"):
        clone(str(tmp_path / "nothing.git"), target)
    git(tmp_path, "init", "-q", "--bare", "empty.git")
    with pytest.raises(RegistryError, match="has no commit"):
        clone(str(tmp_path / "empty.git"), target)
    with pytest.raises(InputError, match="credentials"):
        clone("https://me:hush@host/x.git", target)
    assert not target.parent.exists()
    with monkeypatch.context() as patch:
        for role in ("AUTHOR", "COMMITTER"):
            patch.delenv(f"GIT_{role}_NAME")
        with pytest.raises(InputError, match="git has no identity"):
            clone(str(bare), target, remote=str(tmp_path / "data"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(InputError, match="not an empty folder"):
        clone(str(bare), tmp_path / "taken")
    abandoned = tmp_path / "new" / ".second.clone-4194305"
    abandoned.mkdir(parents=True)
    clone(str(bare), target, everything=True, remote=str(tmp_path / "data"))
    assert cached(Registry.open(target)) == cached(first)
    assert os.listdir(target.parent) == ["second"]
    assert leftovers(Registry.open(target)) == []


def test_the_users_own_programs_do_not_run_on_what_is_cloned(
    fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks of a template and a filter like LFS's are in the user's git settings; the source asks for the filter."""
    first = fresh(1)
    ran = tmp_path / "ran"
    hooks = tmp_path / "template" / "hooks"
    hooks.mkdir(parents=True)
    for name in ("post-checkout", "reference-transaction", "pre-push", "post-merge", "pre-commit"):
        (hooks / name).write_text(f"#!/bin/sh\necho hook {name} >> {ran}\n", encoding="utf-8")
        (hooks / name).chmod(0o755)
    settings = tmp_path / "gitconfig"
    settings.write_text(
        f"[init]\n templateDir = {tmp_path / 'template'}\n[core]\n hooksPath = {hooks}\n"
        f'[filter "loud"]\n smudge = "echo smudge >> {ran}; cat"\n clean = "echo clean >> {ran}; cat"\n',
        encoding="utf-8",
    )
    with (first.root / ".gitattributes").open("a", encoding="utf-8") as file:
        file.write("*.yaml filter=loud\nmetrics.json ident\n")
    git(first.root, "commit", "-qam", "Ask for a filter")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    clone(str(first.root), tmp_path / "second")
    second = Registry.open(tmp_path / "second")
    sample.make_generation(second)
    assert git(second.root, "status", "--porcelain") == ""
    assert not ran.exists()
    # They would have run.
    plain = tmp_path / "plain"
    git(tmp_path, "clone", "-q", str(first.root), str(plain))
    assert "smudge" in ran.read_text(encoding="utf-8")
    assert "hook post-checkout" in ran.read_text(encoding="utf-8")


Change = Callable[[Path], str | None]
"""Makes a registry one that must be refused; the path of what git does not follow yet."""


def _link(root: Path) -> str:
    (root / "notes").symlink_to("/etc/passwd")
    return "notes"


def _link_inside(root: Path) -> str:
    shutil.rmtree(root / "student")
    (root / "student").symlink_to(".git/hooks")
    return "student"


def _write(path: str, text: str) -> Change:
    def change(root: Path) -> str:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
        return path

    return change


def _replace(path: str, old: str, new: str) -> Change:
    def change(root: Path) -> None:
        text = (root / path).read_text(encoding="utf-8")
        assert old in text
        (root / path).write_text(text.replace(old, new), encoding="utf-8")

    return change


def _remote(lines: str) -> Change:
    def change(root: Path) -> None:
        with (root / ".dvc" / "config").open("a", encoding="utf-8") as file:
            file.write(lines)

    return change


ATTACKS: dict[str, tuple[Change, str]] = {
    "a link out": (_link, "notes is a symbolic link"),
    "a link into git": (_link_inside, "student is a symbolic link"),
    "a state": (_write(".flywheel/state.json", "{}"), r"\.flywheel/state\.json has a name"),
    "a local config": (_write(".dvc/config.local", "[core]\n"), r"\.dvc/config\.local has a name"),
    "a planted object": (_write(".dvc/cache/files/md5/00/00", "x"), r"\.dvc/cache/files/md5/00/00 has a name"),
    "a file where DVC's are": (_write("student/evil.py", "x"), "student/evil.py lies in a folder that is DVC's"),
    "a program of AWS": (_remote("['remote \"x\"']\n    url = s3://b/x\n    configpath = ../aws\n"), "configpath"),
    "a secret": (_remote("['remote \"x\"']\n    url = s3://b/x\n    secret_access_key = a\n"), "secret_access_key"),
    "an address in two ways": (_remote('[remote "x"]\n    url = """s3://b/x"""\n'), "line"),
    "an odd address": (_remote("['remote \"x\"']\n    url = webhdfs://h/x\n"), "expected a folder, s3://"),
    "another cache": (_replace(".dvc/config", "dir = cache", "dir = /var/cache"), "dir = '/var/cache'"),
    "an output elsewhere": (_replace("dvc.yaml", "outs: [problems]", "outs: [../../.bashrc]"), r"writes to '\.\./"),
    "an absolute output": (_replace("dvc.lock", "path: attempts\n", "path: /tmp/attempts\n"), "writes to '/tmp"),
    "an output in git": (_replace("dvc.yaml", "outs: [problems]", "outs: [.git/hooks]"), r"writes to '\.git"),
    "another folder of work": (
        _replace("dvc.yaml", "outs: [problems]", "outs: [problems]\n    wdir: ../x"),
        "has wdir",
    ),
    "a variable": (_replace("params.yaml", 'folder: "0000"', "folder: ../../x"), "folder is '../../x'"),
    "variables": (_replace("dvc.yaml", "stages:", "vars:\n  - a: b\nstages:"), "has vars"),
    "another pointer": (_replace("parent.dvc", "path: parent", "path: dvc.yaml"), "parent.dvc writes to 'dvc.yaml'"),
    "a newer version": (_replace("flywheel.json", '"registry_version": ', '"registry_version": 9'), "upgrade Flywheel"),
    "no registry": (lambda root: (root / "flywheel.json").unlink(), "it is not a registry"),
}


@pytest.mark.parametrize("name", list(ATTACKS))
def test_a_tree_that_would_reach_out_is_refused(fresh: Fresh, tmp_path: Path, name: str) -> None:
    change, words = ATTACKS[name]
    first = fresh(1)
    path = change(first.root)
    git(first.root, "add", "-u")
    if path is not None:
        git(first.root, "add", "-f", path)
    git(first.root, "commit", "-qm", "Reach out")
    with pytest.raises(RegistryError, match=f"refused, nothing of it was written: .*{words}"):
        clone(str(first.root), tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_what_flywheel_and_dvc_write_is_not_refused(fresh: Fresh, s3: S3, tmp_path: Path) -> None:
    registry = fresh(1)
    for address, endpoint in ((s3.url, s3.endpoint), ("ssh://me@host:22/path", None), (str(tmp_path / "a, b#c"), None)):
        remote_settings.name_data(registry, address, endpoint)
        config = (registry.root / ".dvc" / "config").read_text(encoding="utf-8")
        assert remote_settings.check_foreign(config) == []
        # DVC folds a long address, also where it has no space.
        assert "".join(dvc.run(registry, "remote", "list").split()) == f"data{address}(default)".replace(" ", "")
        assert remotes.default(registry) == remotes.Remote("data", address)
    dvc.run(registry, "remote", "add", "-q", "-d", "mine", "s3://bucket/x")
    dvc.run(registry, "remote", "modify", "-q", "mine", "region", "eu-north-1")
    config = (registry.root / ".dvc" / "config").read_text(encoding="utf-8")
    assert remote_settings.check_foreign(config) == []
    dvc.run(registry, "remote", "modify", "-q", "mine", "profile", "root")
    config = (registry.root / ".dvc" / "config").read_text(encoding="utf-8")
    assert len(remote_settings.check_foreign(config)) == 1


def test_a_pull_refuses_what_a_clone_would(fresh: Fresh, tmp_path: Path) -> None:
    first = fresh(1)
    exchange.push(first, str(tmp_path / "data"), str(tmp_path / "history.git"))
    clone(str(tmp_path / "history.git"), tmp_path / "second", remote=str(tmp_path / "data"))
    second = Registry.open(tmp_path / "second")
    _link(first.root)
    git(first.root, "add", "notes")
    git(first.root, "commit", "-qm", "Reach out")
    exchange.push(first)
    before = git(second.root, "rev-parse", "HEAD")
    with pytest.raises(RegistryError, match="notes is a symbolic link"):
        exchange.pull(second)
    assert git(second.root, "rev-parse", "HEAD") == before
    assert not (second.root / "notes").exists()


def test_a_damaged_object_is_not_cloned(fresh: Fresh, tmp_path: Path) -> None:
    first = fresh(1)
    model = first.layout.student / "model.safetensors"
    md5 = hashlib.md5(model.read_bytes()).hexdigest()
    path = first.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    path.chmod(0o644)
    path.write_bytes(b"x" * 4400)
    with pytest.raises(RegistryError, match=f"1 damaged: 1 object: {md5}"):
        clone(str(first.root), tmp_path / "second")
    assert not (tmp_path / "second").exists()
