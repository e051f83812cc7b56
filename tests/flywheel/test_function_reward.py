"""A user's function as a reward: whatever it does, only that problem's answers lose their verdict, with the reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flywheel import sections
from flywheel.errors import ConfigError, FlywheelError, Interrupted
from flywheel.problems.countdown import Countdown
from flywheel.problems.isolated import Workers
from flywheel.records import Problem
from flywheel.rewards import reward as rewards
from flywheel.rewards.function import Function
from flywheel.rewards.reward import Answer, Judgement

JUDGES = '''
import ctypes, os, sys, time
print("printed on import")

def judge(problem, answers):
    """What happens is told by the problem's id."""
    what = problem["problem_id"]
    print("printed for", what)
    if what == "hang":
        time.sleep(60)
    if what == "spin":
        2003 ** 2002 ** 2001
    if what == "raise":
        raise KeyError("no such thing")
    if what == "exit":
        sys.exit(0)
    if what == "os._exit":
        os._exit(3)
    if what == "segfault":
        ctypes.string_at(0)
    if what == "memory":
        bytearray(2**40)
    if what == "stdin":
        return [float(sys.stdin.read() == "") for _ in answers]
    if what == "interrupt":
        raise KeyboardInterrupt
    values = {
        "nan": float("nan"), "infinite": float("inf"), "above": 1.5, "below": -0.1, "text": "1.0", "unsure": None,
        "list": [1.0], "true": True,
    }
    if what in values:
        return [values[what], *[0.25] * (len(answers) - 1)]
    if what == "short":
        return [1.0]
    if what == "single":
        return 1.0
    if what == "object":
        return object()
    if what == "tokens":
        return [len(answer["output"]) / 100 for answer in answers]
    return [0.5 for _ in answers]

def seen(problem, answers):
    reference = problem.get("reference", "hidden")
    told = problem["prompt"] == "2 3 9 -> 15\\n" and problem["payload"] == {"numbers": [2, 3, 9], "target": 15}
    form = [answer["answer"] == "(+(*2*3)+9)" and answer["stop_reason"] == "eos" for answer in answers]
    return [told and reference == "hidden" and right for right in form]

def broken(problem, answers):
    raise ValueError(f"always, in process {os.getpid()}")

def numbers(problem, answers):
    import numpy
    return numpy.full(len(answers), 0.5, dtype=numpy.float32)

def child(problem, answers):
    import subprocess
    with open(os.environ["PIDS"], "a") as file:
        print(subprocess.Popen(["sleep", "300"]).pid, os.getpid(), file=file)
    time.sleep(300)

constant = 3
'''
RIGHT, WRONG = "2 * 3 = 6\n6 + 9 = 15", "2 + 3 = 5\n5 + 9 = 14"


@pytest.fixture(autouse=True)
def _judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_judges.py").write_text(JUDGES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def problem(name: str) -> Problem:
    return Problem(name, "countdown", 1, "train", 1.0, "g", {"numbers": [2, 3, 9], "target": 15}, RIGHT)


def answers(*outputs: str) -> list[Answer]:
    return [Answer(output, "eos", tuple(output.split("\n"))) for output in outputs]


@pytest.fixture
def reward(countdown: Countdown) -> Iterator[Function]:
    made = Function("my_judges:judge", countdown, 1.0, 512, 2)
    yield made
    made.close()


def one(reward: Function, name: str) -> list[Judgement]:
    return reward.judge([(problem(name), answers(RIGHT, WRONG))])[0]


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("raise", "failed", "KeyError: 'no such thing' (my_judges.py, line 14)"),
        ("exit", "failed", "SystemExit: 0"),
        ("os._exit", "failed", "exited with code 3"),
        ("segfault", "failed", "died by SIGSEGV"),
        ("memory", "failed", "MemoryError: beyond its memory limit"),
        ("interrupt", "failed", "KeyboardInterrupt"),
        ("short", "failed", "returned 1 values for 2 answers"),
        ("single", "failed", "returned float 1.0, expected a list"),
        ("object", "failed", "which is not JSON"),
    ],
)
def test_a_call_that_fails_costs_its_own_problem(reward: Function, name: str, status: str, reason: str) -> None:
    before, failed, after = reward.judge([(problem(which), answers(RIGHT, WRONG)) for which in ("a", name, "b")])
    assert [(j.reward, j.status) for j in failed] == [(None, status)] * 2
    assert all(reason in j.reason for j in failed), failed[0]
    assert [j.answer for j in failed] == [j.answer for j in before] == ["(+(*2*3)+9)", "(+2+3+9)"]
    assert [(j.reward, j.status) for j in before + after] == [(0.5, "judged")] * 4


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nan", "returned nan, expected a number in 0..1"),
        ("infinite", "returned inf"),
        ("above", "returned 1.5"),
        ("below", "returned -0.1"),
        ("text", "returned str '1.0'"),
        ("list", "returned list [1.0]"),
        ("unsure", "the function cannot say"),
    ],
)
def test_a_value_that_is_none_costs_its_own_answer(reward: Function, name: str, reason: str) -> None:
    first, second = one(reward, name)
    assert (first.reward, first.status) == (None, "failed")
    assert reason in first.reason
    assert (second.reward, second.status) == (0.25, "judged")


def test_truth_values_and_arrays_are_numbers(countdown: Countdown, reward: Function) -> None:
    assert [j.reward for j in one(reward, "true")] == [1.0, 0.25]
    assert [j.reward for j in one(reward, "stdin")] == [1.0, 1.0]
    arrays = Function("my_judges:numbers", countdown, 20.0, 2048, 1)
    assert [j.reward for j in one(arrays, "a")] == [0.5, 0.5]
    arrays.close()


@pytest.mark.parametrize("name", ["hang", "spin"])
def test_a_timeout_is_of_the_call_alone(reward: Function, name: str) -> None:
    """Also where C code holds the interpreter; and those that wait behind it lose nothing, though they wait longer than
    a call may take."""
    names = [name, name, name, *[f"p{i}" for i in range(6)]]
    began = time.monotonic()
    judged = reward.judge([(problem(which), answers(RIGHT)) for which in names])
    assert time.monotonic() - began < 10.0
    assert [row[0].status for row in judged] == ["timeout"] * 3 + ["judged"] * 6
    assert {row[0].reason for row in judged[:3]} == {"took longer than 1 s"}
    assert [row[0].reward for row in judged] == [None] * 3 + [0.5] * 6


def test_values_go_to_their_own_answers(reward: Function) -> None:
    """In the midst of answers that are not asked about."""
    texts = answers(RIGHT, "nonsense", WRONG + "\n", "", RIGHT)
    cut = Answer(RIGHT, "length", ())
    lost = Answer("", "failed", ())
    row = reward.judge([(problem("x"), []), (problem("tokens"), [cut, *texts, lost])])
    assert row[0] == []
    assert [(j.reward, j.status) for j in row[1]] == [
        (0.0, "truncated"),
        (len(RIGHT) / 100, "judged"),
        (0.0, "malformed"),
        (len(WRONG + "\n") / 100, "judged"),
        (0.0, "malformed"),
        (len(RIGHT) / 100, "judged"),
        (None, "failed"),
    ]


def test_what_the_function_is_told(countdown: Countdown) -> None:
    """Not the reference: Countdown's own checker does without, so a search by this reward can be deployed."""
    reward = Function("my_judges:seen", countdown, 5.0, 512, 1)
    assert reward.name == "function(my_judges:seen)"
    assert not reward.needs_reference
    assert [j.reward for j in one(reward, "a")] == [1.0, 0.0]
    reward.close()


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_module:judge", "No module named 'no_such_module'"),
        ("my_judges:no_such", "has no attribute 'no_such'"),
        ("my_judges:constant", "is a int, expected a function"),
    ],
)
def test_a_function_that_is_not_there(countdown: Countdown, target: str, reason: str) -> None:
    section = sections.Reward(name="function", function=target)
    with pytest.raises(ConfigError, match=reason):
        rewards.load(section, countdown, 0, None, "cpu", 1)


def test_a_module_of_the_working_folder(countdown: Countdown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.chdir(tmp_path)
    reward = Function("my_judges:judge", countdown, 5.0, 512, 1)
    assert one(reward, "a")[0].reward == 0.5
    reward.close()


def test_a_function_that_never_works_stops_the_run(countdown: Countdown, reward: Function) -> None:
    broken = Function("my_judges:broken", countdown, 5.0, 512, 1)
    for call in range(19):
        assert one(broken, f"p{call}")[0].status == "failed"
    with pytest.raises(FlywheelError, match=r"any of its first 20 calls; the last: ValueError: always"):
        one(broken, "p19")
    broken.close()
    # One that worked once goes on.
    reward.judge([(problem("a"), answers(RIGHT)), *[(problem("raise"), answers(RIGHT))] * 40])


def test_a_stop_leaves_nothing_behind(reward: Function) -> None:
    """The call that was given up must not answer into the next one."""
    looks = 0

    def should_stop() -> None:
        nonlocal looks
        looks += 1
        if looks > 4:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        reward.judge([(problem("hang"), answers(RIGHT))], should_stop)
    assert [j.reward for j in one(reward, "tokens")] == [len(RIGHT) / 100, len(WRONG) / 100]


def test_a_worker_that_dies_idle_costs_nothing(reward: Function) -> None:
    assert one(reward, "a")[0].reward == 0.5
    for worker in reward._workers._workers:
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
    assert one(reward, "b")[0].reward == 0.5


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_dead(pids: list[int]) -> None:
    until = time.monotonic() + 10.0
    while any(map(alive, pids)):
        assert time.monotonic() < until, [pid for pid in pids if alive(pid)]
        time.sleep(0.02)


def test_what_a_killed_call_had_started_dies_with_it(
    countdown: Countdown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    reward = Function("my_judges:child", countdown, 1.0, 512, 1)
    assert one(reward, "a")[0].status == "timeout"
    wait_until_dead([int(pid) for pid in (tmp_path / "pids").read_text().split()])


PARENT = """
import signal
import sys
# Also where the tests run in the background of a shell, which has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from flywheel.problems.isolated import Workers
workers = Workers("my_judges:judge", 600.0, 512, 1)
assert workers.start() is None
print(workers._workers[0].process.pid, flush=True)
if sys.argv[1] == "call":
    workers.call([[{"problem_id": "spin"}, []]])
"""


@pytest.mark.parametrize("way", ["exit", "call"])
def test_workers_end_with_their_parent(way: str) -> None:
    """At its exit, and when it is killed in the midst of a call that lets no thread of the worker run."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, way], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    if way == "call":
        assert alive(worker)
        time.sleep(0.3)
        parent.kill()
    parent.wait(10)
    parent.stdout.close()
    wait_until_dead([worker])


def test_ctrl_c_prints_nothing_of_a_worker() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, "call"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(0.3)
    os.killpg(parent.pid, signal.SIGINT)
    _, errors = parent.communicate(timeout=10)
    assert errors.count("Traceback") == 1  # the parent's own
    assert "my_judges" not in errors.partition("Traceback")[2]
    wait_until_dead([worker])


def test_a_pool_needs_no_more_processes_than_requests(countdown: Countdown) -> None:
    workers = Workers("my_judges:judge", 5.0, 512, 8)
    assert [reply.value for reply in workers.call([[{"problem_id": "a"}, []]] * 2)] == [[], []]
    assert len(workers._workers) == 2
    workers.close()
    assert not workers._workers
    assert workers.call([]) == []
