"""Answers kept on disk: nothing is lost, nothing stale or damaged comes back."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from flywheel.models.server_cache import AnswerCache

PARTS: dict[str, Any] = {
    "address": "http://127.0.0.1:8000/v1",
    "model": "small",
    "revision": None,
    "endpoint": "chat",
    "prompt": '[{"content":"Be brief.","role":"system"},{"content":"1","role":"user"}]',
    "prefix": "8 * 3 = 24\n",
    "temperature": 0.7,
    "top_p": 1.0,
    "top_k": None,
    "max_tokens": 16,
    "stop": "\n",
    "seed": "00000000000000ff",
    "index": 0,
}
OTHER: dict[str, Any] = {
    "address": "http://127.0.0.1:8001/v1",
    "model": "large",
    "revision": "r7",
    "endpoint": "completions",
    "prompt": '[{"content":"Be long.","role":"system"},{"content":"1","role":"user"}]',
    "prefix": "8 * 3 = 2",
    "temperature": None,
    "top_p": 0.9,
    "top_k": 5,
    "max_tokens": 17,
    "stop": None,
    "seed": "00000000000000fe",
    "index": 1,
}
ANSWER = {"text": "24 - 5 = 19 ✓", "finish": "stop", "log_probabilities": [-0.1, -2.0]}


def test_an_answer_comes_back_as_it_was_also_in_another_process(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    assert cache.get(PARTS) is None
    cache.put(PARTS, ANSWER)
    assert cache.get(dict(reversed(PARTS.items()))) == ANSWER
    assert AnswerCache(tmp_path).get(PARTS) == ANSWER


@pytest.mark.parametrize("name", PARTS)
def test_any_other_part_is_another_answer(tmp_path: Path, name: str) -> None:
    cache = AnswerCache(tmp_path)
    cache.put(PARTS, ANSWER)
    changed = PARTS | {name: OTHER[name]}
    assert cache.get(changed) is None
    cache.put(changed, {"text": "another"})
    assert cache.get(PARTS) == ANSWER
    assert len(cache) == 2


def test_parts_that_run_into_each_other_stay_apart(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    cache.put({"prompt": "12", "prefix": "3"}, ANSWER)
    assert cache.get({"prompt": "1", "prefix": "23"}) is None
    assert cache.get({"prompt": 12, "prefix": "3"}) is None


KILLED = """
import sys
from pathlib import Path
from flywheel.models.server_cache import AnswerCache
cache = AnswerCache(Path(sys.argv[1]))
for number in range(100000):
    cache.put({"number": number}, {"text": str(number)})
    print(number, flush=True)
"""


def test_a_kill_loses_no_answer_that_was_kept(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(200)]
        os.kill(process.pid, signal.SIGKILL)
        told += [int(line) for line in process.stdout if line.endswith("\n")]
    cache = AnswerCache(tmp_path)
    assert [cache.get({"number": number}) for number in told] == [{"text": str(number)} for number in told]


@pytest.mark.parametrize("damage", ["text", "empty", "half", "header", "pages", "other table"])
def test_a_damaged_file_is_removed_and_begun_anew(tmp_path: Path, damage: str) -> None:
    cache = AnswerCache(tmp_path)
    for number in range(300):
        cache.put({"number": number}, {"text": "x" * 200})
    cache.close()
    content = cache.path.read_bytes()
    if damage == "other table":
        cache.path.unlink()
        other = sqlite3.connect(cache.path)
        other.execute("CREATE TABLE answers (something)")
        other.close()
    else:
        cache.path.write_bytes(
            {
                "text": b"no database " * 400,
                "empty": b"",
                "half": content[: len(content) // 2],
                "header": b"\0" * 100 + content[100:],
                "pages": content[:4096] + b"\xff" * (len(content) - 4096),
            }[damage]
        )
    again = AnswerCache(tmp_path)
    found = [again.get({"number": number}) for number in range(300)]
    assert set(map(str, found)) <= {"None", str({"text": "x" * 200})}
    assert None in found
    again.put(PARTS, ANSWER)
    assert AnswerCache(tmp_path).get(PARTS) == ANSWER


def test_an_entry_that_was_changed_is_no_answer_and_goes(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    cache.put(PARTS, ANSWER)
    other = sqlite3.connect(cache.path)
    with other:
        other.execute("UPDATE answers SET content = replace(content, '19', '91')")
    other.close()
    assert cache.get(PARTS) is None
    assert len(cache) == 0


def test_threads_and_processes_share_one_file(tmp_path: Path) -> None:
    caches = [AnswerCache(tmp_path), AnswerCache(tmp_path)]
    errors: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for number in range(start, start + 50):
                caches[number % 2].put({"number": number}, {"text": str(number)})
        except BaseException as error:  # noqa: BLE001 (shown by the test's own thread)
            errors.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 200, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert all(AnswerCache(tmp_path).get({"number": number}) == {"text": str(number)} for number in range(200))


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").mkdir()
    with pytest.raises(OSError, match="cannot be used"):
        AnswerCache(tmp_path)
