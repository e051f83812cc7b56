"""The lineage page in a real browser, headless: search, open and close, click through, and nothing but this."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flows.lineage_page import embedded, render, write
from flywheel.errors import InputError
from flywheel.records import digest
from storage.lineage import Graph

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = (
    "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=2'><svg/onload=window.pwned=3>"
    "<!-- {{ 7*7 }} \u2028 ]]> \" ' & javascript:window.pwned=4"
)
GENERATIONS = 50


def student(generation: int) -> str:
    return f"gen/{generation}/student"


def row_of(generation: int, place: int) -> dict[str, Any]:
    name = digest("row", generation, place)
    return {
        "label_id": name,
        "problem_id": digest("problem", place),
        "prompt": f"problem {place} of {generation}",
        "completion": HOSTILE if (generation, place) == (3, 0) else f"answer {generation}x{place}",
        "reward": 1.0,
        "reward_source": "exact",
        "searcher": "best_of_n",
        "address": f"gen/{generation}/labels#{name}",
        "learned_by": [student(generation)],
    }


def graph(generations: int = GENERATIONS) -> Graph:
    """A label of the newest generation, its search, and fifty generations of which each learned from all before."""
    solver = f"model/{digest('solver')}"
    nodes: list[dict[str, Any]] = [
        {"address": solver, "kind": "solver", "digest": digest("solver"), "generation": None, "source": HOSTILE}
    ]
    edges: dict[tuple[str, str], str] = {}
    for number in range(generations):
        common = {"generation": number, "status": "abandoned" if number == 7 else "ancestor"}
        labels, teacher = f"gen/{number}/labels", student(number - 1) if number else solver
        learned = [{"from": f"gen/{older}/labels", "rows": 10 + older} for older in range(number + 1)]
        nodes += [
            {"address": labels, "kind": "labels", "digest": digest("labels", number), **common, "rows": 1000 + number,
             "teacher": digest("student", number - 1), "examples": [row_of(number, place) for place in range(3)]},
            {"address": student(number), "kind": "student", "digest": digest("student", number), **common,
             "promoted": True, "parameters": 1234, "learned": learned, "learned_rows": sum(e["rows"] for e in learned)},
        ]  # fmt: skip
        edges |= {(teacher, labels): "made", (teacher, student(number)): "began"}
        edges |= {(entry["from"], student(number)): "learned" for entry in learned}
    last = generations - 1
    label, attempt, problem = (f"gen/{last}/{kind}#{digest(kind)}" for kind in ("labels", "attempts", "problems"))
    common = {"generation": last, "status": "current"}
    nodes += [
        {"address": problem, "kind": "problem", "digest": digest("problems"), **common, "domain": "text",
         "split": "train", "payload": {"question": HOSTILE}, "reference": None},
        {"address": attempt, "kind": "attempt", "digest": digest("attempts"), **common, "roles": ["attempt"],
         "teacher": digest("student", last - 1), "searcher": "beam", "search_params": {"width": 4},
         "prompt": HOSTILE, "output": "one two", "steps": ["one", HOSTILE], "step_rewards": [0.25, 0.75],
         "reward": 0.75, "reward_source": "process", "stop_reason": "eos", "judged": "judged",
         "tokens": 12, "flops_policy": 1e6, "flops_reward": 2e6, "seed": 7, "index": 2},
        {"address": label, "kind": "label", "digest": digest("labels"), **common, "label_kind": "policy",
         "problem_id": digest("problems"), "teacher": digest("student", last - 1), "searcher": "beam", "reward": 0.75,
         "reward_source": "process", "prompt": HOSTILE, "completion": "one two", "parents": []},
    ]  # fmt: skip
    edges |= {(problem, attempt): "posed", (student(last - 1), attempt): "made", (attempt, label): "parent"}
    edges[label, student(last)] = "learned"
    return Graph((label,), "both", nodes, [list(edge) for edge in edges], tuple(edges.values()))  # type: ignore[arg-type]


ASKED = graph().roots[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        missing = "no `chromium` on the PATH, in which the page is tried; install it (e.g. `apt install chromium`)"
        if os.environ.get("FLYWHEEL_REQUIRE_BROWSER"):
            pytest.fail(missing)
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """The page of `graph`; whatever it says on the console or asks for beyond its own file fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(write(graph(), tmp_path / "graph.html", HOSTILE).as_uri())
    page.wait_for_selector(".node.chosen")
    yield page
    assert said == []
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.querySelectorAll('#panel img, #graph img, #results img, body > img').length") == 0
    context.close()


def shown(page: Page) -> set[str]:
    return set(page.eval_on_selector_all(".node", "found => found.map(node => node.dataset.address)"))


def panel(page: Page) -> str:
    return page.inner_text("#panel")


def go(page: Page, address: str) -> None:
    page.click(f'#panel [data-to="{address}"] >> nth=0')
    page.wait_for_function("address => document.querySelector('#panel code').textContent === address", arg=address)


def test_it_opens_at_what_was_asked_for_and_its_neighbourhood(page: Page) -> None:
    near = shown(page)
    assert ASKED in near
    assert 5 < len(near) <= 30, "the rest waits to be opened"
    assert page.inner_text("#count") == f"{len(near)} of {2 * GENERATIONS + 4} nodes"
    # A column a generation: everything of a generation stands in one, the newer ones to the right.
    lefts: dict[int, set[float]] = {}
    for address in near:
        if address.startswith("gen/"):
            left = page.get_attribute(f'[data-address="{address}"] .box', "x")
            lefts.setdefault(int(address.split("/")[1]), set()).add(float(left or "nan"))
    assert all(len(found) == 1 for found in lefts.values())
    columns = [min(found) for _, found in sorted(lefts.items())]
    assert len(columns) > 2
    assert columns == sorted(set(columns))
    names = page.eval_on_selector_all("#legend span", "found => found.map(span => span.textContent)")
    assert {"label", "attempt", "problem", "student", "set of labels", "solver", "learned from"} <= set(names)


def test_from_a_row_to_its_model_and_back(page: Page) -> None:
    attempt = next(node["address"] for node in graph().nodes if node["kind"] == "attempt")
    go(page, attempt)
    assert "step 2: 0.75" in panel(page)
    assert HOSTILE.replace("\u2028", " ")[:60] in panel(page).replace("\u2028", " ")
    go(page, student(48))
    labels = "gen/47/labels"
    assert "taught" not in panel(page).split("Went into")[0]
    page.click("#panel summary >> nth=0")
    go(page, labels)
    row = row_of(47, 1)
    page.click(f'#panel [data-to="{row["address"]}"]')
    page.wait_for_function("text => document.querySelector('#panel').innerText.includes(text)", arg="answer 47x1")
    assert f"flywheel lineage {row['address']}" in panel(page)
    assert page.get_attribute(".node.chosen", "data-address") == labels
    go(page, student(46))
    for expected in (row["address"], labels, student(48), attempt, ASKED):
        page.click("#back")
        page.wait_for_function("name => document.querySelector('#panel code').textContent === name", arg=expected)
    assert page.is_disabled("#back")
    go(page, student(49))
    page.go_back()
    page.wait_for_function("name => document.querySelector('#panel code').textContent === name", arg=ASKED)
    assert page.is_disabled("#back"), "back leads nowhere but through this page"
    page.goto(page.url.partition("#")[0] + "#%")
    assert page.get_attribute(".node.chosen", "data-address") == ASKED


def test_counts_stand_beside_what_was_learned(page: Page) -> None:
    go(page, student(49))
    total = sum(10 + older for older in range(50))
    assert f"{total:,} of {total:,} rows here" in panel(page)
    rows = {
        line["to"]: line["note"]
        for line in page.eval_on_selector_all(
            "#panel .panel-link",
            "found => found.map(link => ({to: link.dataset.to, note: link.querySelector('small').textContent}))",
        )
    }
    assert all(rows[f"gen/{older}/labels"] == f"learned from {10 + older}" for older in range(50))


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (digest("student", 3)[:12], student(3)),
        ("gen/12/labels", "gen/12/labels"),
        ("question", f"gen/49/problems#{digest('problems')}"),
        ("answer 20X2", row_of(20, 2)["address"]),
        (digest("problem", 1)[:9] + " gen/30/", row_of(30, 1)["address"]),
    ],
)
def test_search_jumps_to_what_says_so(page: Page, words: str, address: str) -> None:
    place = address.partition("#")[0] if "/labels#" in address else address
    assert place not in shown(page) or place.startswith("gen/49")
    page.fill("#search", words)
    page.wait_for_selector("#results li[role=option]")
    page.press("#search", "Enter")
    page.wait_for_function("name => document.querySelector('#panel code').textContent === name", arg=address)
    assert page.get_attribute(".node.chosen", "data-address") == place
    assert "hit" in (page.get_attribute(".node.chosen", "class") or "")
    box, stage = page.locator(".node.chosen").bounding_box(), page.locator("#stage").bounding_box()
    assert box is not None
    assert stage is not None
    assert stage["x"] <= box["x"] <= stage["x"] + stage["width"] - box["width"], "it was brought into view"


def test_search_that_finds_nothing_says_so(page: Page) -> None:
    page.fill("#search", "no such words anywhere")
    assert "Nothing in this graph" in page.inner_text("#results")
    page.press("#search", "Escape")
    assert page.is_hidden("#results")
    assert page.locator(".node.hit").count() == 0


def test_causes_open_and_close(page: Page) -> None:
    go(page, student(49))
    causes = {f"gen/{older}/labels" for older in range(50)} | {student(48)}
    before = shown(page)
    opener = page.locator(f'[data-address="{student(49)}"] [data-open=causes]')
    hidden, place = len(causes - before), opener.bounding_box()
    assert opener.text_content() == f"+{hidden}"
    opener.click()
    assert len(causes - shown(page)) == hidden - 12, "twelve at a time"
    moved = opener.bounding_box()
    assert place is not None
    assert moved is not None
    assert abs(place["x"] - moved["x"]) < 5 > abs(place["y"] - moved["y"]), "what was clicked stays where it was"
    while (opener.text_content() or "").startswith("+"):
        opener.press("Enter")
    assert causes <= shown(page)
    opener.click()
    assert not causes & shown(page) - {ASKED}
    assert {ASKED, student(49)} <= shown(page)


def test_all_of_it_and_near_again(page: Page) -> None:
    page.click("#all")
    assert len(shown(page)) == 2 * GENERATIONS + 4
    edges = page.locator("path.edge").count()
    assert edges == len(graph().edges) > 1300
    # It fits, a node can be chosen in it, and its edges stand out.
    boxes = page.eval_on_selector_all(".node .box", "found => found.map(box => box.getBoundingClientRect().toJSON())")
    stage = page.locator("#stage").bounding_box()
    assert stage is not None
    assert all(box["left"] >= 0 and box["right"] <= stage["width"] and box["width"] > 5 for box in boxes)
    page.click(f'[data-address="{student(20)}"] .box')
    page.wait_for_function("name => document.querySelector('#panel code').textContent === name", arg=student(20))
    assert page.locator("path.edge.near.learned").count() == 21
    page.click("#near")
    assert len(shown(page)) < 60
    assert student(20) in shown(page)


def test_pan_and_zoom_move_the_picture_and_choose_nothing(page: Page) -> None:
    def where() -> str:
        return page.get_attribute("#layer", "transform") or ""

    page.click("#fit")
    start = where()
    box = page.locator(".node.chosen").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 20, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] - 80, box["y"] + 60, steps=4)
    page.mouse.up()
    dragged = where()
    assert dragged != start
    assert page.get_attribute(".node.chosen", "data-address") == ASKED
    page.mouse.wheel(0, -400)
    page.wait_for_function(
        "before => document.getElementById('layer').getAttribute('transform') !== before", arg=dragged
    )
    scale = float(re.search(r"scale\(([\d.]+)\)", where())[1])  # type: ignore[index]
    page.click("#smaller")
    assert float(re.search(r"scale\(([\d.]+)\)", where())[1]) < scale  # type: ignore[index]


def test_it_is_used_by_keyboard(page: Page) -> None:
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.focus(f'[data-address="{student(48)}"]')
    page.keyboard.press("Enter")
    page.wait_for_function("name => document.querySelector('#panel code').textContent === name", arg=student(48))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_runs_over(browser: Browser, tmp_path: Path, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": 420, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(write(graph(), tmp_path / "graph.html", "registry").as_uri())
    page.wait_for_selector(".node.chosen")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    assert page.evaluate("document.getElementById('panel').scrollWidth") <= 420
    box, stage = page.locator(".node.chosen").bounding_box(), page.locator("#stage").bounding_box()
    assert box is not None
    assert stage is not None
    assert 0 <= box["x"] <= 420 - box["width"]
    assert stage["y"] <= box["y"] <= stage["y"] + stage["height"]
    ink, paper = (
        page.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).slice(0, 3).map(Number)")
        for name in ("color", "backgroundColor")
    )
    assert (sum(ink) > sum(paper)) == (scheme == "dark")
    context.close()


def test_without_a_script_the_outline_is_there(browser: Browser, tmp_path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(write(graph(3), tmp_path / "graph.html", "registry").as_uri())
    assert "gen/2/student" in page.inner_text("noscript pre")
    context.close()


def test_the_file_stands_alone() -> None:
    text = render(graph(2), HOSTILE)
    assert re.search(r"(src|href)=\"(?!data:)", text) is None
    assert re.search(r"https?://(?!www\.w3\.org/2000/svg)", text) is None
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])  # type: ignore[index]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert text.count("<script") == 2
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["nodes"] == graph(2).nodes


def test_embedded_json_ends_nothing_and_is_what_it_was() -> None:
    text = embedded({"prompt": HOSTILE})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"prompt": HOSTILE}


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder, expected a file"):
        write(graph(1), tmp_path, "registry")
