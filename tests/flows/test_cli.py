"""The command line's manners: exit codes, one document on stdout, clear words for bad input, light imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from storage.registry import Registry
from tests.flows.command import environment, flywheel, flywheel_json
from tests.storage.conftest import copy_of, made  # noqa: F401 (a fixture)

HEAVY = {"dvc", "mlflow", "prefect", "torch", "transformers", "pandas", "matplotlib"}


@pytest.mark.parametrize("command", ["history", "ledger", "status", "query", "lineage"])
def test_reading_commands_import_nothing_heavy(command: str, made: dict[int, Registry]) -> None:  # noqa: F811
    arguments = {"query": ["SELECT 1 AS one"], "lineage": ["gen/0/student"]}.get(command, [])
    script = (
        "import json, sys; sys.argv = ['flywheel', *json.loads(sys.argv[1])]\n"
        "from flows.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)"
    )
    told = json.dumps([command, *arguments, "--json", "--registry", str(made[1].root)])
    done = subprocess.run(
        [sys.executable, "-c", script, told], capture_output=True, text=True, env=environment(), check=True
    )
    json.loads(done.stdout)
    assert not HEAVY & set(json.loads(done.stderr.splitlines()[-1]))


def test_every_error_of_the_params_at_once_and_nothing_made(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    refused = flywheel(
        "init", "--registry", registry, "--set", "generate.samples=0", "--set", "problems.numbers=9", "--set",
        "generate.sampels=4", "--set", "train.start=sideways", code=2,
    )  # fmt: skip
    for words in ("generate.samples: got 0", "problems.numbers: got 9", "did you mean samples?", "train.start"):
        assert words in refused.stderr
    assert not registry.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["history"], "flywheel init"),
        (["run", "--preset", "countdwon"], "did you mean countdown?"),
        (["run", "--generations", "0"], "--generations"),
        (["query", "SELECT 1"], "flywheel init"),
        (["frobnicate"], "frobnicate"),
        (["schedule", "--cron", "every day"], "flywheel init"),
    ],
)
def test_bad_input_exits_2_and_says_what_to_do(arguments: list[str], words: str, tmp_path: Path) -> None:
    refused = flywheel(*arguments, code=2, cwd=tmp_path)
    assert words in refused.stderr
    assert refused.stdout == ""
    assert "Traceback" not in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_foreign_folders_and_newer_registries_are_refused(made: dict[int, Registry], tmp_path: Path) -> None:  # noqa: F811
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    assert "is not a registry" in flywheel("run", "--registry", foreign, code=2).stderr
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]
    newer = copy_of(made[1], tmp_path / "newer").root
    marker = json.loads((newer / "flywheel.json").read_text())
    (newer / "flywheel.json").write_text(json.dumps({**marker, "registry_version": 99}))
    assert "99" in flywheel("history", "--registry", newer, code=2).stderr


def test_detached_and_hand_edited_registries_conflict(made: dict[int, Registry], tmp_path: Path) -> None:  # noqa: F811
    edited = copy_of(made[1], tmp_path / "edited").root
    with (edited / "dvc.yaml").open("a") as file:
        file.write("# mine\n")
    refused = flywheel("rollback", "gen/0", "--registry", edited, "--reason", "x", "--yes", code=2)
    assert "already stands" in refused.stderr
    detached = copy_of(made[1], tmp_path / "detached").root
    subprocess.run(["git", "-C", detached, "checkout", "-q", "--detach"], check=True)
    assert "conflict" in flywheel("history", "--registry", detached, code=3).stderr


def test_rollback_asks_for_a_reason_and_for_consent(made: dict[int, Registry]) -> None:  # noqa: F811
    registry = made[4].root
    assert "--reason" in flywheel("rollback", "gen/1", "--registry", registry, code=2).stderr
    assert "--yes" in flywheel("rollback", "gen/1", "--registry", registry, "--reason", "x", code=2).stderr
    assert flywheel_json("rollback", "gen/1", "--registry", registry, "--dry-run")["to"] == 1
    assert "gen/9" in flywheel("rollback", "gen/9", "--registry", registry, "--dry-run", code=2).stderr


def test_query_is_read_only_and_knows_the_past(made: dict[int, Registry]) -> None:  # noqa: F811
    registry = made[4].root
    now = flywheel_json("query", "SELECT count(*) AS n FROM labels", "--registry", registry)
    then = flywheel_json("query", "SELECT count(*) AS n FROM labels", "--registry", registry, "--at", "gen/1")
    assert then[0]["n"] < now[0]["n"]
    assert "DROP" in flywheel("query", "DROP VIEW labels", "--registry", registry, code=2).stderr.upper()


def test_doctor_finds_a_missing_file(made: dict[int, Registry], tmp_path: Path) -> None:  # noqa: F811
    registry = copy_of(made[1], tmp_path / "registry")
    assert flywheel_json("doctor", "--registry", registry.root)["ok"]
    lineage = json.loads((registry.root / "lineage" / "0000.json").read_text())
    md5 = lineage["tables"]["labels"]["files"][0]["md5"]
    from storage.cache import cache_path

    cache_path(registry, md5).unlink()
    found = json.loads(flywheel("doctor", "--registry", registry.root, "--json", code=1).stdout)
    assert [finding["what"] for finding in found["findings"] if not finding["ok"]] == ["cache"]


def test_json_has_no_numbers_that_json_has_not(made: dict[int, Registry]) -> None:  # noqa: F811
    sql = "SELECT 'nan'::DOUBLE AS a, '-inf'::DOUBLE AS b, [1.5, 'inf'::DOUBLE] AS c, 'a'::BLOB AS d"

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = flywheel("query", sql, "--json", "--registry", made[1].root).stdout
    assert json.loads(text, parse_constant=refuse) == [{"a": None, "b": None, "c": [1.5, None], "d": "61"}]
