"""The Go Text Protocol with real child processes: one that plays, and those that break down in every way."""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path

import pytest

from flywheel.errors import EngineError, InputError
from flywheel.problems.hex import Games, parse
from flywheel.search.gtp import Engine, EngineResigned
from tests.flywheel.board_worlds import keys

ENGINE = """
import os, subprocess, sys, time
mode, folder = sys.argv[1], sys.argv[2]
with open(f"{folder}/pids", "a") as pids:
    print(os.getpid(), file=pids)
log = open(f"{folder}/log", "a", buffering=1)
size, stones, asked = 0, set(), 0

def say(text, end="\\n\\n"):
    sys.stdout.write(text + end)
    sys.stdout.flush()

if mode == "closes its input":
    os.close(0)
    time.sleep(60)
for line in sys.stdin:
    print(line.strip(), file=log)
    words = line.split()
    if words[0] == "quit":
        if mode == "does not quit":
            time.sleep(60)
        if mode == "quits slowly":
            time.sleep(0.2)
        say("=")
        print("bye", file=log)
        break
    if words[0] == "boardsize":
        size = int(words[1])
        if mode == "small boards only" and size > 3:
            say("? unacceptable size")
            continue
    elif words[0] == "clear_board":
        stones.clear()
    elif words[0] == "play":
        stones.add(words[2])
    elif words[0] == "genmove":
        asked += 1
        cells = [f"{chr(97 + column)}{row + 1}" for row in range(size) for column in range(size)]
        move = next(cell for cell in cells if cell not in stones)
        if mode == "dies":
            print("first words", file=sys.stderr)
            print("out of cells", file=sys.stderr, flush=True)
            os._exit(3)
        elif mode == "crashes":
            os.abort()
        elif mode == "dies later" and asked == 3:
            sys.exit(0)
        elif mode == "says garbage":
            say("move: " + move)
            continue
        elif mode == "plays a taken cell":
            move = min(stones) if stones else move
        elif mode == "plays outside":
            move = "z9"
        elif mode == "swaps":
            move = "swap-pieces"
        elif mode == "says nothing":
            move = ""
        elif mode == "hangs":
            time.sleep(60)
        elif mode == "does not end":
            say("= " + move, "\\n")
            time.sleep(60)
        elif mode == "resigns" and asked == 2:
            move = "Resign"
        elif mode == "refuses":
            say("? cannot think")
            continue
        elif mode == "floods":
            while True:
                say("= " + "x" * 5000, "")
        elif mode == "complains":
            sys.stderr.write("warning " * 100000)
            sys.stderr.flush()
        elif mode == "complains without end":
            while True:
                sys.stderr.write("warning " * 1000)
        elif mode == "answers twice":
            say("= " + move)
        elif mode == "closes its output":
            os.close(1)
            time.sleep(60)
        elif mode == "has children":
            child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
            with open(f"{folder}/pids", "a") as pids:
                print(child.pid, file=pids)
            os._exit(1)
        if mode == "of another system":
            say("\\r\\n= " + move.upper() + " \\r", "\\r\\n\\r\\n\\n")
        else:
            say("= " + move)
        continue
    say("=")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "engine.py"
    path.write_text(ENGINE)
    return path


def engine(script: Path, mode: str, size: int = 3, seconds: float = 20.0) -> Engine:
    command = [sys.executable, "-I", "-S", str(script), mode, str(script.parent)]
    return Engine(command, size, name="small", seconds_a_move=seconds)


def said(script: Path) -> list[str]:
    return (script.parent / "log").read_text().splitlines()


def started(script: Path) -> list[int]:
    return [int(pid) for pid in (script.parent / "pids").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Not a process that ended and that nobody (in a container, perhaps) has taken note of.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def all_ended(script: Path) -> bool:
    until = time.monotonic() + 5.0
    while (running := [pid for pid in started(script) if is_running(pid)]) and time.monotonic() < until:
        time.sleep(0.01)
    return not running


def test_what_is_said_to_set_up_positions(script: Path) -> None:
    """Black is the first player, who joins top and bottom; c1 is the third cell of the first row, a3 the first of the
    third; the colours take turns, as on a board where moves are made."""
    games = parse(["..X/OX./O..", ".../.../...", "..X/.../..."])
    with engine(script, "plays") as player:
        assert player.choose(games, keys(3)).tolist() == [0, 0, 0]
        assert (player.name, player.flops) == ("small", 0.0)
    assert said(script) == [
        "boardsize 3",
        "clear_board", "play black c1", "play white a2", "play black b2", "play white a3", "genmove black",
        "clear_board", "genmove black",
        "clear_board", "play black c1", "genmove white",
        "quit", "bye",
    ]  # fmt: skip
    assert len(started(script)) == 1
    assert all_ended(script)


def test_a_whole_game(script: Path) -> None:
    """The first empty cell each time, until a3 joins top and bottom for the first player."""
    games = Games(3, 1)
    with engine(script, "plays") as player:
        while games.winners[0] == -1:
            games.play(player.choose(games, keys(1)))
    assert games.text(0) == "XOX/OXO/X.."


@pytest.mark.parametrize("mode", ["of another system", "complains"])
def test_what_is_allowed(script: Path, mode: str) -> None:
    """Carriage returns, empty lines, capitals; a standard error that no pipe would hold."""
    games = parse(["X../.../...", "XO./.../..."])
    with engine(script, mode) as player:
        assert player.choose(games, keys(2)).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("dies", r"told 'genmove white': got its end with exit code 3 \(its last words: 'out of cells'\), expected an"),
        ("crashes", "got its death by signal 6"),
        ("says garbage", r"got 'move: b1\\n\\n', expected an answer `= ...`"),
        ("plays a taken cell", r"got a1, which is taken, expected an empty cell of X../.../..."),
        ("plays outside", "got 'z9', expected a cell a1 to c3"),
        ("swaps", "got 'swap-pieces', expected a cell a1 to c3"),
        ("says nothing", "got '', expected a cell a1 to c3"),
        ("hangs", r"got nothing in time \(0.6 s a move"),
        ("does not end", r"got '= b1\\n' and no more in time"),
        ("refuses", "got the refusal 'cannot think'"),
        ("floods", "got more than 65536 bytes"),
        ("complains without end", r"got nothing in time .*last words: '(warning )+"),
        ("closes its output", "got the end of its output"),
        ("has children", "got its end with exit code 1"),
    ],
)
def test_a_fault_is_told_and_ends_the_engine(script: Path, mode: str, reason: str) -> None:
    slow = mode in ("hangs", "does not end", "complains without end")
    games = parse(["X../.../..."])
    player = engine(script, mode, seconds=0.6 if slow else 20.0)
    begun = time.monotonic()
    with pytest.raises(EngineError, match=reason) as caught:
        player.choose(games, keys(1))
    assert not isinstance(caught.value, EngineResigned)
    assert time.monotonic() - begun < 10.0
    assert all_ended(script), "whatever it was doing"
    player.close()


def test_a_fault_at_the_start(script: Path) -> None:
    with pytest.raises(EngineError, match=r"told 'boardsize 5': got the refusal 'unacceptable size'"):
        engine(script, "small boards only", 5).choose(Games(5, 1), keys(1))
    assert all_ended(script)
    with engine(script, "small boards only", 3) as player:
        assert player.choose(Games(3, 1), keys(1)).tolist() == [0]


def test_an_answer_that_nobody_asked_for(script: Path) -> None:
    """It would be taken for the next one's, and all that follow would be out of step."""
    with engine(script, "answers twice") as player:
        assert player.choose(Games(3, 1), keys(1)).tolist() == [0]
        time.sleep(0.1)
        with pytest.raises(EngineError, match=r"told 'clear_board': got '= a1\\n\\n' before it was asked"):
            player.choose(Games(3, 1), keys(1))


def test_an_engine_that_does_not_read_is_not_waited_for(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flywheel.search.gtp._START_SECONDS", 0.5)
    with pytest.raises(EngineError, match="told 'boardsize 3': got nothing in time"):
        engine(script, "closes its input").choose(Games(3, 1), keys(1))
    assert all_ended(script)


def test_after_a_fault_another_is_started(script: Path) -> None:
    with engine(script, "dies later") as player:
        assert player.choose(Games(3, 2), keys(2)).tolist() == [0, 0]
        with pytest.raises(EngineError, match="exit code 0"):
            player.choose(Games(3, 1), keys(1))
        assert player.choose(Games(3, 2), keys(2)).tolist() == [0, 0]
    assert len(started(script)) == 2
    assert all_ended(script)


def test_an_engine_may_resign_and_plays_on(script: Path) -> None:
    with engine(script, "resigns") as player:
        player.choose(Games(3, 1), keys(1))
        with pytest.raises(EngineResigned, match=r"resigned at X../.../..."):
            player.choose(parse(["X../.../..."]), keys(1))
        assert player.choose(Games(3, 1), keys(1)).tolist() == [0]
    assert len(started(script)) == 1


def test_it_is_never_left_behind(script: Path) -> None:
    """Closed, whether it quits in time or never; forgotten; or interrupted in the middle of a move."""
    slow = engine(script, "quits slowly")
    slow.choose(Games(3, 1), keys(1))
    slow.close()
    assert said(script)[-1] == "bye", "it had its moment"
    stubborn = engine(script, "does not quit")
    stubborn.choose(Games(3, 1), keys(1))
    begun = time.monotonic()
    stubborn.close()
    assert time.monotonic() - begun < 8.0
    assert all_ended(script)
    assert stubborn.choose(Games(3, 1), keys(1)).tolist() == [0], "asked again, it starts again"
    del stubborn
    gc.collect()
    assert all_ended(script)


def test_an_interruption_ends_it(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    player = engine(script, "hangs")

    def interrupt(*_: object) -> None:
        if said(script)[-1].startswith("genmove"):
            raise KeyboardInterrupt

    monkeypatch.setattr("flywheel.search.gtp.EngineProcess.has_died", interrupt)
    with pytest.raises(KeyboardInterrupt):
        player.choose(Games(3, 1), keys(1))
    assert all_ended(script)


def test_setup_is_sent_at_each_start(script: Path) -> None:
    command = f"{sys.executable} -I -S '{script}' plays '{script.parent}'"
    player = Engine(command, 2, setup=["param_mohex max_games 10"])
    assert player.name == Path(sys.executable).name
    for _ in range(2):
        with player:
            player.choose(Games(2, 2), keys(2))
    assert said(script).count("param_mohex max_games 10") == said(script).count("boardsize 2") == 2
    assert said(script)[:2] == ["boardsize 2", "param_mohex max_games 10"]


def test_what_cannot_be_an_engine(tmp_path: Path) -> None:
    for command in ("flywheel-has-no-such-engine --seed 1", [str(tmp_path)]):
        with pytest.raises(EngineError, match=r"not be started: got .*, expected a program at .*; install it"):
            Engine(command, 3).choose(Games(3, 1), keys(1))
    with pytest.raises(InputError, match="no command"):
        Engine("", 3)
    with pytest.raises(InputError, match="board of size 20"):
        Engine("mohex", 20)
    with pytest.raises(InputError, match="0 seconds a move"):
        Engine("mohex", 11, seconds_a_move=0)
    with pytest.raises(InputError, match="of size 3 with the swap rule, expected size 3 without"):
        Engine("mohex", 3).choose(Games(3, 1, swap=True), keys(1))
    with pytest.raises(InputError, match="of size 4 without the swap rule, expected size 3"):
        Engine("mohex", 3).choose(Games(4, 1), keys(1))
    with pytest.raises(ValueError, match="is over"):
        Engine("mohex", 2).choose(parse(["XO/X."]), keys(1))
