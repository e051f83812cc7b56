"""An outside engine as a player of Hex, such as MoHex, by the Go Text Protocol.

The protocol is version 2 (Farneback 2002, draft 2, section 2): a command is a line; an answer begins with `=`, or with
`?` where the command failed, and ends with an empty line. The words are those of MoHex and Wolve (the benzene project's
HexHtpEngine, HexColor, HexPoint and ConstBoard), which are the rules of `flywheel.problems.hex`:

      a b c           black moves first and joins top and bottom, white joins left and right; a cell is its column's
    1  B . .          letter and its row's number, a1 at the top left; a cell touches those left and right of it,
     2  . W .         above and below it, above on the right (b1 and a2), and below on the left
      3  . . .

For every move the whole position is set up anew, black and white stones by turns; in Hex their order does not matter.
The engine's own draws are the only ones that do not come from keys: seed it by its command (`mohex --seed 1`).
"""

from __future__ import annotations

import itertools
import math
import shlex
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flywheel.errors import EngineError, InputError
from flywheel.problems.hex import FIRST, NOBODY, Games, cell_of, check_size, name_of
from flywheel.search.engine_process import EngineProcess, kill_all, start

_START_SECONDS = 120.0
"""For an engine to load what it needs and to answer the first commands."""
_QUIT_SECONDS = 2.0
"""For an engine to end by itself when told to."""
_DYING_SECONDS = 1.0
"""From an engine's closing its output to its end."""
_LOOK_EVERY = 0.2
"""Seconds between two looks at whether it lives: what it started may hold its output open."""
_LONGEST_ANSWER = 1 << 16
_FORM = "an answer `= ...` that ends with an empty line"


class EngineResigned(EngineError):  # noqa: N818 (a turn of the game)
    """The engine gave the game up: a loss, and no fault; the engine plays on."""


class Engine:
    """A player that another program plays. It is started when first asked, and again after a fault; `close`, the end of
    a `with`, and the interpreter's end end it. (If we are killed it sees its input end, at which an engine quits.) Not
    for several threads at once."""

    flops: float = 0.0

    def __init__(
        self,
        command: Sequence[str] | str,
        size: int,
        name: str | None = None,
        seconds_a_move: float = 60.0,
        setup: Sequence[str] = (),
    ) -> None:
        """`command` is a program with its arguments; a text is split as a shell would. The name is the program's by
        default. `seconds_a_move` bounds a move with the setting up of its position. `setup`: lines to send at each
        start, such as `param_mohex max_games 1000`. Raises InputError."""
        check_size(size)
        self.command = shlex.split(command) if isinstance(command, str) else list(command)
        if not self.command:
            raise InputError("got no command for an engine, expected a program with its arguments, such as 'mohex'")
        if not 0.0 < seconds_a_move < math.inf:
            raise InputError(f"got {seconds_a_move} seconds a move, expected more than 0")
        self.name = Path(self.command[0]).name if name is None else name
        self.size = size
        self.seconds_a_move = seconds_a_move
        self.setup = tuple(setup)
        self._running: list[EngineProcess] = []
        """The one that runs, if any."""
        self._finalizer = weakref.finalize(self, kill_all, self._running)

    def choose(self, games: Games, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """One game after the other; the first fault ends it, so that who wants to know whose it was asks for one game.
        Raises InputError for another size and for the swap rule, EngineResigned where the engine gives a game up, and
        EngineError for every fault of the engine's, which is ended then."""
        if games.size != self.size or games.swap:
            rule = "with" if games.swap else "without"
            raise InputError(
                f"got games of size {games.size} {rule} the swap rule, expected size {self.size} without; "
                f"make an engine for that size, and games without swap"
            )
        if (games.winners != NOBODY).any():
            raise ValueError("got a game that is over; no move is left")
        return np.array([self._answer(games, game) for game in range(len(games))], np.int64)

    def close(self) -> None:
        """Tell the engine to quit, wait a moment (it may have a log to close), and end it. It starts again if asked."""
        for engine in self._running:
            engine.write("quit")
            engine.close_input()
            engine.wait(_QUIT_SECONDS)
        kill_all(self._running)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, games: Games, game: int) -> int:
        try:
            if not self._running:
                self._start()
            return self._generate(games, game, time.monotonic() + self.seconds_a_move)
        except EngineResigned:
            raise
        except BaseException:
            # Whatever it says later would be taken for the answer to something else.
            kill_all(self._running)
            raise

    def _start(self) -> None:
        try:
            self._running.append(start(self.command))
        except OSError as error:
            raise EngineError(
                f"engine {self.name} could not be started: got {error.strerror or error}, expected a program at "
                f"{self.command[0]!r}; install it, or give its whole path"
            ) from error
        deadline = time.monotonic() + _START_SECONDS
        for line in (f"boardsize {self.size}", *self.setup):
            self._ask(line, deadline)

    def _generate(self, games: Games, game: int, deadline: float) -> int:
        self._ask("clear_board", deadline)
        for colour, stone in _by_turns(games.stones()[game]):
            self._ask(f"play {colour} {name_of(stone, self.size)}", deadline)
        command = f"genmove {'black' if games.movers[game] == FIRST else 'white'}"
        answer = self._ask(command, deadline).lower()
        if answer == "resign":
            raise EngineResigned(f"engine {self.name} resigned at {games.text(game)}")
        try:
            cell = cell_of(answer, self.size)
        except InputError as error:
            last = name_of(self.size**2 - 1, self.size)
            raise self._fault(command, repr(answer[:80]), f"a cell a1 to {last}") from error
        if games.boards[game, cell] != 0:
            raise self._fault(command, f"{answer}, which is taken", f"an empty cell of {games.text(game)}")
        return cell

    def _ask(self, command: str, deadline: float) -> str:
        """What it answers, without the `=`."""
        engine = self._running[0]
        engine.listen(0.0)
        if engine.received.strip():
            raise self._fault(command, f"{_quoted(engine.received)} before it was asked", "silence until then")
        engine.received.clear()
        engine.write(command)
        while True:
            answer = engine.received.lstrip()
            if answer and answer[:1] not in b"=?":
                raise self._fault(command, _quoted(answer), _FORM)
            end = answer.find(b"\n\n")
            if end >= 0:
                break
            if len(answer) > _LONGEST_ANSWER:
                raise self._fault(command, f"more than {_LONGEST_ANSWER} bytes", _FORM)
            left = deadline - time.monotonic()
            if left <= 0:
                got = f"{_quoted(answer)} and no more" if answer else "nothing"
                allowed = f"{self.seconds_a_move:g} s a move, {_START_SECONDS:g} s to start"
                raise self._fault(command, f"{got} in time ({allowed})", _FORM, "let it think less, or give it more")
            if engine.silent or (not engine.listen(min(left, _LOOK_EVERY)) and engine.has_died()):
                raise self._fault(command, self._ended(), _FORM)
        engine.received = answer[end + 2 :]
        text = answer[1:end].decode("ascii", "replace").strip()
        if answer[:1] == b"?":
            raise self._fault(command, f"the refusal {text[:200]!r}", "that it can do this")
        return text

    def _ended(self) -> str:
        engine = self._running[0]
        if not engine.wait(_DYING_SECONDS):
            return "the end of its output"
        engine.listen(0.0)
        engine.kill()
        code = engine.process.returncode
        return f"its death by signal {-code}" if code < 0 else f"its end with exit code {code}"

    def _fault(self, command: str, got: str, expected: str, fix: str = "") -> EngineError:
        said = self._running[0].complaints.decode("utf-8", "replace").strip().splitlines()[-1:]
        last_words = f" (its last words: {said[0][:200]!r})" if said else ""
        fix = fix or f"try it by hand: {shlex.join(self.command)}"
        return EngineError(f"engine {self.name}, told {command!r}: got {got}{last_words}, expected {expected}; {fix}")


def _by_turns(stones: npt.NDArray[np.int8]) -> Iterator[tuple[str, int]]:
    black, white = np.flatnonzero(stones > 0).tolist(), np.flatnonzero(stones < 0).tolist()
    for first, second in itertools.zip_longest(black, white):
        if first is not None:
            yield "black", first
        if second is not None:
            yield "white", second


def _quoted(answer: bytearray) -> str:
    return repr(answer[:80].decode("ascii", "replace"))
