"""The report: what the page loads and escapes, whether its drawings say what the rows say, and a real registry's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flows.figures import Band, Line, by_budget, by_stage, comparison
from flows.page import Facts, flops, render
from flows.report import report
from flywheel.errors import InputError, RegistryError
from flywheel.records import digest
from storage.registry import Registry
from tests.storage import sample

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"
LOADING = {"href", "src", "srcset", "xlink:href", "data", "action", "poster", "background", "formaction", "ping"}


class Page(HTMLParser):
    """Every element with its attributes, and the text outside of style sheets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def metric(value: float) -> dict[str, Any]:
    return {"value": value, "low": max(0.0, value - 0.05), "high": min(1.0, value + 0.05), "count": 256}


def generation(number: int, status: str = "ancestor", **more: Any) -> dict[str, Any]:
    test = {"greedy": metric(0.1 + 0.1 * number)}
    for budget in (1, 4, 16, 64):
        test[f"best@{budget}"] = test[f"pass@{budget}"] = metric(0.1 + 0.1 * number + 0.05 * math.log2(budget))
    collapse = {"alarms": ["entropy fell below 0.1"] if number == 2 else [], "distinct_solutions": 3.0 - 0.25 * number}
    return {
        "generation": number,
        "tag": f"gen/{number:04d}",
        "parent": number - 1 if number else None,
        "status": status,
        "labels": 1200 + number,
        "teacher": digest("student", number - 1),
        "student": digest("student", number),
        "metrics": {"test": test, "valid": test, "collapse": collapse},
        "flops": {"policy": 1e12, "training": 5e11},
        "reason": None,
        "champion": number,
        "promoted": True,
        **more,
    }


def facts(**more: Any) -> Facts:
    history = [
        generation(0),
        generation(1),
        generation(2, "abandoned", reason=HOSTILE),
        generation(3, "current", parent=1),
    ]
    label = {
        "generation": 3,
        "label_id": digest("label"),
        "teacher": digest("student", 1),
        "searcher": "best_of_n",
        "reward": 1.0,
        "reward_source": "exact",
        "payload": '{"numbers":[3,8,1],"target":24}',
        "completion": f"8 * 3 = 24\n{HOSTILE}",
    }
    control = {"name": "no_search $5 <b>", "seed": 1, "test": {"greedy": metric(0.21)}, "flops": 2.1e13}
    costs = [
        {"generation": number, "stage": stage, "flops": cost * (number + 1)}
        for number in range(4)
        for stage, cost in (("generate", 2e12), ("train", 1e12), ("filter", 0.0))
    ]
    return Facts(**{"name": "demo", "history": history, "costs": costs, "controls": [control], "samples": [label],
                    "lineages": {3: "gen/3/labels\n└── gen/1/student"}, **more})  # fmt: skip


SUMMARY = {
    "sentence": "The student of generation 3 beats generation 0 with a search of 16; it pays after 1,234 queries.",
    "break_even": [{"search": "best@16 of gen/0", "search_flops": 2.1e8, "queries": 1234.0}],
}


@pytest.fixture(scope="module")
def page() -> str:
    return render(facts(), SUMMARY)


def test_page_loads_nothing(page: str) -> None:
    elements = Page(page).elements
    loaded = [(tag, name, value) for tag, values in elements for name, value in values.items() if name in LOADING]
    assert loaded, "the page has links within itself"
    assert [entry for entry in loaded if not entry[2].startswith(("#", "data:,"))] == []
    assert {"script", "iframe", "img", "object", "embed", "base", "form", "audio", "video"}.isdisjoint(
        tag for tag, _ in elements
    )
    assert [found for found in re.findall(r"url\(([^)]*)\)", page) if not found.startswith("#")] == []
    assert "@import" not in page
    assert "://" not in page
    assert "default-src 'none'" in page


def test_links_and_ids_fit(page: str) -> None:
    elements = Page(page).elements
    ids = [values["id"] for _, values in elements if "id" in values]
    assert len(ids) == len(set(ids))
    named = {values["href"][1:] for _, values in elements if values.get("href", "").startswith("#")}
    named |= set(re.findall(r"url\(#([^)]*)\)", page))
    named |= {name for _, values in elements for name in values.get("aria-labelledby", "").split()}
    assert named <= set(ids)


def test_everything_from_outside_is_escaped(page: str) -> None:
    parsed = Page(page)
    assert "<script" not in page
    assert "<b>" not in page
    assert all(not name.startswith("on") for _, values in parsed.elements for name in values)
    assert parsed.text.count(HOSTILE) == 2, "shown as text: the reason and the completion"


def test_page_says_what_the_rows_say(page: str) -> None:
    text = Page(page).text
    assert SUMMARY["sentence"] in text
    for number in range(4):
        assert f"{10 + 10 * number}.0 %" in text
        assert f"1,{200 + number}" in text
    assert "gen/2: entropy fell below 0.1" in text
    assert "numbers 3 8 1, target 24" in text
    assert "210 MFLOP" in text
    assert "1,234" in text
    assert "no search $5 <b>, seed 1" in text
    assert "pass@64" not in text, "equal to best@64, so not shown twice"


def test_drawings_can_be_read_without_eyes(page: str) -> None:
    elements = Page(page).elements
    drawings = [values for tag, values in elements if tag == "svg"]
    assert len(drawings) == 4
    assert all(values["role"] == "img" and values["aria-labelledby"] for values in drawings)
    assert sum(tag == "title" for tag, _ in elements) == 5
    assert sum(tag == "desc" for tag, _ in elements) == 4


def test_same_values_same_bytes(page: str) -> None:
    assert render(facts(), SUMMARY) == page


def test_bars_are_as_high_as_the_flops() -> None:
    drawing = by_stage([0, 1, 2], {"generate": [1e12, 2e12, 4e12], "train": [3e12, 0.0, 1e12]})
    heights: dict[str, list[float]] = {}
    for path, style in re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="([^"]*)"', drawing):
        if colour := re.search(r"fill: (#[0-9a-f]{6})", style):
            ups = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)]
            heights.setdefault(colour[1], []).append(max(ups) - min(ups))
    generate, train = heights["#0072b2"], heights["#d55e00"]
    unit = generate[0]
    assert generate == pytest.approx([unit, 2 * unit, 4 * unit])
    assert train == pytest.approx([3 * unit, 0, unit], abs=1e-3)


def test_budgets_are_spaced_by_their_logarithm() -> None:
    points = tuple(Band(x, 0.5, 0.4, 0.6) for x in (0.5, 1, 4, 16, 64))
    drawing = by_budget([Line("gen/0", points, 0.0)], "best")
    place = {text: float(x) for x, text in re.findall(r'<text [^>]*x="([\d.]+)"[^>]*>(greedy|\d+)</text>', drawing)}
    assert place["4"] - place["1"] == pytest.approx(place["16"] - place["4"], abs=1e-3)
    assert place["64"] - place["16"] == pytest.approx(place["16"] - place["4"], abs=1e-3)
    assert place["greedy"] < place["1"]


def test_dollars_are_no_formula() -> None:
    assert ">$5 and $6</text>" in comparison([("$5 and $6", Band(0, 0.5, 0.4, 0.6))])


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999 FLOP"), (1.5e3, "1.5 kFLOP"), (2.13e13, "21.3 TFLOP"), (None, "–")]
)
def test_flops_are_written_with_a_prefix(value: float | None, text: str) -> None:
    assert flops(value) == text


def test_a_first_generation_alone_makes_a_page() -> None:
    alone = generation(0, "current", metrics={"test": {"greedy": metric(0.4)}})
    text = Page(render(Facts("demo", [alone], []), {})).text
    assert "The student of gen/0, answering at once, solves 40.0 % of the test problems." in text
    assert "demo: 1 generation" in text


def test_many_generations_stay_a_readable_plot() -> None:
    history = [generation(number, "current" if number == 6 else "ancestor") for number in range(7)]
    drawing = render(facts(history=history), {})
    lines = re.search(r'<svg[^>]*aria-labelledby="by-budget.*?</svg>', drawing, re.DOTALL)
    assert lines is not None
    shown = re.findall(r">(gen/\d+)</text>", lines[0])
    assert len(shown) == 6
    assert (shown[0], shown[-1]) == ("gen/0", "gen/6")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Two generations, really committed."""
    with pytest.MonkeyPatch.context() as patch:
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "Test")
            patch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
        registry = sample.new_registry(tmp_path_factory.mktemp("report") / "hens & eggs")
        with pytest.raises(InputError, match="registry without generations"):
            report(registry, tmp_path_factory.mktemp("out") / "report.html")
        sample.make_generation(registry)
        sample.make_generation(registry)
        yield registry


def test_report_of_a_registry(registry: Registry, tmp_path: Path) -> None:
    path = report(registry, tmp_path / "new" / "report.html", SUMMARY)
    text = path.read_text(encoding="utf-8")
    parsed = Page(text)
    assert "hens & eggs: 2 generations" in parsed.text
    assert SUMMARY["sentence"] in parsed.text
    # Labels shown are those of the sample's rule, with their teacher and a way to their lineage.
    for number in (0, 1):
        ids = sorted(digest("label", digest("attempt", number, 0, i)) for i in range(sample.LABELS + number))
        shown = [values["title"] for tag, values in parsed.elements if tag == "code" and "title" in values]
        assert set(ids) & set(shown)
        assert ("a", f"#lineage-{number}") in {(tag, values.get("href")) for tag, values in parsed.elements}
    assert f"model/{sample.SOLVER} solver" in parsed.text
    assert "6 MFLOP" in parsed.text, "two generations of 1 and 2 million each, from the ledger"
    again = report(registry, tmp_path / "again.html", SUMMARY)
    assert again.read_bytes() == path.read_bytes()


def test_controls_of_a_registry_are_shown(registry: Registry, tmp_path: Path) -> None:
    folder = registry.layout.controls
    folder.mkdir(exist_ok=True)
    control = {"name": "no_search", "seed": 3, "test": {"greedy": metric(0.31)}, "flops": 1.5e9}
    (folder / "no_search-3.json").write_text(json.dumps(control), encoding="utf-8")
    text = Page(report(registry, tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "no search, seed 3 greedy 31.0 % 26.0 – 36.0 1.5 GFLOP" in text
    (folder / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(RegistryError, match=r"broken\.json is no JSON"):
        report(registry, tmp_path / "report.html")
    (folder / "broken.json").write_text("[]", encoding="utf-8")
    with pytest.raises(RegistryError, match=r"broken.json is no control's result"):
        report(registry, tmp_path / "report.html")


def test_a_folder_is_no_place_for_a_page(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder, expected a file"):
        report(registry, tmp_path)
