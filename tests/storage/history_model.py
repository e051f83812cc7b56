"""What a registry's history should be, in forty lines of plain Python: no git, no files, no SQL.

Of the sample generations (`tests.storage.sample`): each student learns its own generation's labels, which its teacher,
the champion of its parent, made, and begins from that champion's weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.storage import sample


@dataclass
class Move:
    """A rollback or exclusion that can be taken back."""

    source: int
    to: int
    exclusion: bool


@dataclass
class Exclusion:
    to: int
    next: int
    models: set[str]
    labels_kept: list[int]


@dataclass
class Model:
    parents: dict[int, int | None] = field(default_factory=dict)
    champions: dict[int, int] = field(default_factory=dict)
    head: int | None = None
    moves: list[Move] = field(default_factory=list)
    excluded: list[Exclusion] = field(default_factory=list)
    windows: dict[int, tuple[set[int], set[str]]] = field(default_factory=dict)
    """Of each generation: whose labels it was offered, and the models that were out by then."""

    def student(self, generation: int) -> str:
        return sample.snapshot_of(generation)

    def teacher(self, generation: int) -> str:
        parent = self.parents[generation]
        return sample.SOLVER if parent is None else self.student(self.champions[parent])

    def base(self, generation: int) -> str:
        parent = self.parents[generation]
        return sample.model_digest(sample.BASE) if parent is None else self.student(self.champions[parent])

    def line(self, generation: int | None) -> list[int]:
        found: list[int] = []
        while generation is not None:
            found.insert(0, generation)
            generation = self.parents[generation]
        return found

    def kept(self, line: list[int]) -> list[int]:
        """Generations off the line whose labels stay, where the next generation goes on from its end."""
        found: set[int] = set()
        for entry in self.excluded:
            if entry.to in line:
                after = line[line.index(entry.to) + 1 :]
                if not after or after[0] >= entry.next:
                    found |= set(entry.labels_kept)
        return sorted(found - set(line))

    def labels(self) -> set[int]:
        """Generations whose labels a student of the head's line may learn from."""
        line = self.line(self.head)
        return {*line, *self.kept(line)}

    def out(self) -> set[str]:
        return {model for entry in self.excluded for model in entry.models}

    def publish(self, promoted: bool = True) -> int:
        number, parent = len(self.parents), self.head
        self.windows[number] = (self.labels(), self.out())
        self.parents[number] = parent
        self.champions[number] = number if promoted or parent is None else self.champions[parent]
        self.head = number
        return number

    def tainted(self, generation: int) -> bool:
        bad = self.out()
        for g in self.line(generation):
            offered, out = self.windows[g]
            teachers = {self.teacher(h) for h in offered} - out | {self.teacher(g)}
            if (teachers | {self.base(g)}) & bad:
                bad.add(self.student(g))
        return bool({self.student(generation), self.student(self.champions[generation])} & bad)

    def roll_back(self, to: int) -> None:
        assert self.head is not None
        self.moves.append(Move(self.head, to, False))
        self.head = to

    def exclusion(self, model: str) -> Exclusion | None:
        """What excluding `model` would come to; None where no clean generation is left."""
        line = self.line(self.head)
        held = self.kept(line)
        bad, before = {model}, 0
        while len(bad) > before:
            before = len(bad)
            bad |= {self.student(g) for g in self.parents if {self.teacher(g), self.base(g)} & bad}
        clean = [g for g in line if not {self.student(g), self.student(self.champions[g])} & bad]
        if not clean:
            return None
        left = [g for g in line if g > clean[-1]]
        stays = sorted(g for g in {*held, *left} if self.teacher(g) not in bad | self.out())
        return Exclusion(clean[-1], len(self.parents), bad, stays)

    def exclude(self, entry: Exclusion) -> None:
        assert self.head is not None
        self.moves.append(Move(self.head, entry.to, True))
        self.excluded.append(entry)
        self.head = entry.to

    def undo(self) -> None:
        move = self.moves.pop()
        if move.exclusion:
            self.excluded.pop()
        self.head = move.source
