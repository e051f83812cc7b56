"""`python -m tests.reliability --out docs/reliability.md`: run the faults, write the page, exit 1 on any violation."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.reliability import campaigns, databases, situations
from tests.reliability.faults import KILLED, can_mount, can_trace, faults
from tests.reliability.injection import Fault, Outcome, Twin, calm, endure, environment, inject
from tests.reliability.page import name_of, page
from tests.reliability.scenarios import RECORDED, SCENARIOS, Scenario, by_name

CAMPAIGN = "campaign"
_SAYS = {**{scenario.name: scenario.says for scenario in (*SCENARIOS, RECORDED)}, CAMPAIGN: campaigns.SAYS}


@dataclass(frozen=True, slots=True)
class Case:
    """Something to try; `run(folder)` does it. `rank` says when, among the cases of its scenario: 0 to 1."""

    scenario: str
    fault: Fault
    rank: float
    run: Callable[[Path], Iterable[Outcome]]

    @property
    def name(self) -> str:
        return f"{self.scenario}/{self.fault.kind}/{self.fault.process}"


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    os.environ.update(environment())
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="flywheel-reliability-", dir=options.work)))
    folder.chmod(0o755)
    outcomes: list[Outcome] = []
    cases = [case for case in _cases(folder, options) if _wanted(case, options)]
    _say(f"{len(cases)} cases in {folder}")
    began = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        running = [
            pool.submit(_unless_late, case, folder / f"case-{i}", options, began) for i, case in enumerate(cases)
        ]
        for number, future in enumerate(running, 1):
            for outcome in future.result():
                outcomes.append(outcome)
                state = outcome.survived if outcome.hit else "not reached"
                _say(f"{number}/{len(cases)} {name_of(outcome)}: {state}, {outcome.seconds:.1f} s")
                for sentence in outcome.violations:
                    _say(f"    VIOLATION: {sentence}")
    order = list(_SAYS)
    outcomes.sort(key=lambda o: (order.index(o.scenario), o.fault.kind, o.fault.process, o.fault.step))
    broken = [outcome for outcome in outcomes if outcome.violations]
    if options.out is not None:
        text = page(outcomes, _SAYS, options.seed, _again(options.every), _notes(folder))
        options.out.write_text(text, encoding="utf-8")
    _say(f"{sum(o.hit for o in outcomes)} faults, {len(broken)} violations, {time.monotonic() - began:.0f} s")
    for outcome in broken:
        _say(f"again: python -m tests.reliability {name_of(outcome)}")
    if broken:
        _say(f"their registries are in {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if broken or not outcomes else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--out", type=Path, help="where to write the page; without it none is written")
    parser.add_argument("--every", type=int, default=12, help="one fault of so many; 1 runs all (default 12)")
    parser.add_argument("--lives", type=int, default=24, help="kills of `flywheel run` (default 24)")
    parser.add_argument("--minutes", type=float, help="start nothing after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=max(1, min(4, os.cpu_count() or 1)), help="cases at once")
    parser.add_argument("--only", help="cases whose name (operation/fault/where) begins so, all of them")
    parser.add_argument("--step", type=int, help="of those, the ones at this step")
    parser.add_argument("--work", type=Path, help="where to make registries; default the system's folder for that")
    return parser.parse_args(arguments)


def _wanted(case: Case, options: argparse.Namespace) -> bool:
    # Of a chain of lives each has a name of its own, which begins as the chain's.
    named = options.only is None or case.name.startswith(options.only) or options.only.startswith(case.name)
    return named and options.step in {None, case.fault.step}


def _cases(folder: Path, options: argparse.Namespace) -> list[Case]:
    """Everything to try, in such an order that any beginning of it has a bit of all."""
    twins: dict[str, tuple[Twin, Path]] = {}

    def twin_of(scenario: Scenario) -> tuple[Twin, Path]:
        if scenario.name not in twins:
            base = folder / "bases" / scenario.base.__name__
            if not base.exists():
                scenario.base(base)
            _say(f"{scenario.name}: {scenario.says}")
            twins[scenario.name] = calm(scenario, base, folder / "twins" / scenario.name, can_trace()), base
        return twins[scenario.name]

    cases: list[Case] = []
    for scenario in SCENARIOS:
        if _begins(scenario.name, options):
            cases += _injections(scenario, *twin_of(scenario), folder, options)
    found = [*situations.situations(folder), *databases.situations(folder)]
    for index, situation in enumerate(found):
        scenario = by_name(situation.scenario)
        if _begins(scenario.name, options):
            fault = Fault(situation.kind, situation.where, 0, "")
            run = partial(_one, endure, scenario, situation, *twin_of(scenario))
            cases.append(Case(scenario.name, fault, index / len(found), run))
    if options.lives and _begins(CAMPAIGN, options):
        cases += _lives(folder, options)
    return sorted(cases, key=lambda case: case.rank)


def _begins(scenario: str, options: argparse.Namespace) -> bool:
    """Whether a case of this operation can be wanted: its twin takes seconds."""
    return options.only is None or options.only.partition("/")[0] == scenario


def _injections(
    scenario: Scenario, twin: Twin, base: Path, folder: Path, options: argparse.Namespace
) -> Iterator[Case]:
    found = faults(twin, options.seed, can_mount(folder))
    every = 1 if options.only is not None else options.every
    chosen = found[: max(1, len(found) // every)]
    if scenario.thorough:
        chosen += [fault for fault in found if fault.kind == KILLED and fault not in chosen]
    for index, fault in enumerate(chosen):
        yield Case(scenario.name, fault, index / len(chosen), partial(_one, inject, scenario, fault, twin, base))


def _lives(folder: Path, options: argparse.Namespace) -> Iterator[Case]:
    base = folder / "bases" / CAMPAIGN
    _say(f"{CAMPAIGN}: {campaigns.SAYS}")
    campaigns.make_base(base)
    before = campaigns.facts_of(base)
    chains = campaigns.chains(options.seed, options.lives)
    twins = {
        overrides: campaigns.make_twin(base, folder / "twins" / f"{CAMPAIGN}-{number}", overrides)
        for number, overrides in enumerate(dict.fromkeys(chain.overrides for chain in chains))
    }
    for index, chain in enumerate(chains):
        run = partial(campaigns.live, chain, base, before, twins[chain.overrides])
        yield Case(CAMPAIGN, Fault(campaigns.KIND, "", chain.number, ""), index / len(chains), run)


def _one(call: Callable[..., Outcome], *arguments: Any) -> list[Outcome]:
    return [call(*arguments)]


def _unless_late(case: Case, place: Path, options: argparse.Namespace, began: float) -> list[Outcome]:
    if options.minutes is not None and time.monotonic() - began > options.minutes * 60:
        return []
    return list(case.run(place))


def _again(every: int) -> str:
    """Which of all faults these are."""
    thorough = ", ".join(f"`{scenario.name}`" for scenario in SCENARIOS if scenario.thorough)
    return f"one fault in {every} of each operation, the kills of {thorough} at every single step, and all situations"


def _notes(folder: Path) -> Iterator[str]:
    if not can_trace():
        yield "Without strace: git was not cut at its system calls."
    if not can_mount(folder):
        yield "Without the right to mount: no file system was full."
    if not situations.can_protect(folder):
        yield "Without immutable files: no folder was closed."


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
