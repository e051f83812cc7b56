"""filter: every attempt is either a label or has its reason, and only the best right ones of training problems stay."""

from __future__ import annotations

import json
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel import params as parameters
from flywheel.errors import Interrupted
from flywheel.params import Params
from flywheel.problems.domain import load as load_domain
from flywheel.records import content_id
from storage.layout import Layout
from storage.rows import read_problems
from storage.schemas import ATTEMPTS, LABEL_PARENTS, LABELS, REJECTED
from storage.tables import TableWriter, count_rows, read_rows, replace_folder
from tasks import filter as filtering
from tasks.stage import Hooks

SECTION = parameters.Filter(threshold=0.5, per_problem=2)
DOMAIN = load_domain(parameters.Problems())


def row(index: int, problem: str = "p", **changes: Any) -> dict[str, Any]:
    """A judged attempt that ended by itself, reward 1, an answer of its own."""
    return {
        "attempt_id": f"{problem}-{index}", "problem_id": problem, "generation": 1, "teacher": "t",
        "searcher": "best_of_n", "search_params": "{}", "seed": 0, "index": index, "prompt": "1 2 -> 3\n",
        "prompt_ids": [4, 5], "output": f"answer {index}", "token_ids": [6, 7, 1], "tokenizer": "k", "steps": [],
        "stop_reason": "eos", "status": "judged", "answer": f"a{index}", "reward": 1.0, "reward_source": "exact",
        "step_rewards": [], "flops_policy": 1.0, "flops_reward": 0.0, "tokens": 3, "log_probability": -1.0, **changes,
    }  # fmt: skip


def reasons(
    attempts: list[dict[str, Any]], section: parameters.Filter = SECTION, training: bool = True
) -> dict[int, str]:
    """Index of each attempt to `kept` or why not."""
    kept, dropped = filtering.select(attempts, section, training, DOMAIN)
    found = {attempt["index"]: "kept" for attempt in kept}
    return found | {attempt["index"]: reason for attempt, reason in dropped}


def test_each_reason_once() -> None:
    attempts = [
        row(0),
        row(1, stop_reason="length", status="truncated", answer=None, reward=0.0),
        row(2, status="timeout", reward=None, answer="a2"),
        row(3, status="malformed", answer=None, reward=0.0),
        row(4, reward=0.4),
        row(5, answer="a0"),
        row(6),
        row(7),
    ]
    assert reasons(attempts) == {
        0: "kept",
        1: "truncated",
        2: "not judged: timeout",
        3: "malformed",
        4: "below threshold",
        5: "same answer as another",
        6: "kept",
        7: "over the share of its problem",
    }
    assert set(reasons(attempts, training=False).values()) == {"not a training problem"}


def test_a_truncated_attempt_is_never_kept_whatever_its_reward() -> None:
    assert reasons([row(0, stop_reason="length", reward=1.0)]) == {0: "truncated"}


def test_higher_rewards_come_first_then_earlier_attempts() -> None:
    attempts = [row(0, reward=0.6), row(1, reward=0.9), row(2, reward=0.9), row(3, reward=1.0)]
    kept, _ = filtering.select(attempts, SECTION, True, DOMAIN)
    assert [attempt["index"] for attempt in kept] == [3, 1]
    # Of one answer found twice the better rewarded attempt stands for it.
    both = [row(0, reward=0.6, answer="x"), row(1, reward=0.9, answer="x")]
    kept, _ = filtering.select(both, SECTION, True, DOMAIN)
    assert [attempt["index"] for attempt in kept] == [1]


def test_no_limit_keeps_every_different_answer() -> None:
    section = parameters.Filter(threshold=0.0, per_problem=None)
    assert set(reasons([row(index) for index in range(50)], section).values()) == {"kept"}


@pytest.mark.parametrize(
    ("rewards", "says"),
    [
        ([0.0, 0.0, 0.0, 0.0], "below threshold"),
        ([1.0, 0.0, 0.0, 0.0], "pass rate too low"),
        ([1.0, 1.0, 0.0, 0.0], "kept"),
        ([1.0, 1.0, 1.0, 0.0], "pass rate too high"),
        ([1.0, 1.0, 1.0, 1.0], "pass rate too high"),
    ],
)
def test_the_pass_rate_must_lie_strictly_between_its_bounds(rewards: list[float], says: str) -> None:
    section = parameters.Filter(threshold=0.5, pass_rate=(0.25, 0.75))
    attempts = [row(index, reward=reward) for index, reward in enumerate(rewards)]
    assert reasons(attempts, section)[0] == says
    unjudged = [*attempts, *[row(9, reward=None, status="failed"), row(10, reward=None, status="failed")]]
    assert reasons(unjudged, section)[0] == says, "attempts without a verdict say nothing of difficulty"
    solved = [row(0, stop_reason="finished")]
    assert reasons(solved, section) == {0: "kept"}, "nor does the solver"


def test_all_that_voted_for_a_label_are_its_parents(layout: Layout, tiny: Params) -> None:
    train = read_problems(layout.problems, ["train"])[0].problem_id
    votes = {"reward_source": "majority"}
    put(layout, [
        row(0, train, answer="x", reward=0.0, **votes), row(1, train, answer="y", reward=0.6, **votes),
        row(2, train, answer="y", reward=0.6, **votes), row(3, train, answer="y", reward=0.6, **votes),
    ])  # fmt: skip
    changed = tiny.model_copy(update={"filter": parameters.Filter(threshold=0.5)})
    filtering.run(changed, layout)
    (label,) = read_rows(layout.labels(1) / "labels", LABELS)
    parents = read_rows(layout.labels(1) / "label_parents", LABEL_PARENTS)
    assert [(p["parent_id"], p["role"]) for p in parents] == [
        (f"{train}-1", "attempt"), (f"{train}-2", "vote"), (f"{train}-3", "vote"),
    ]  # fmt: skip
    assert {p["label_id"] for p in parents} == {label["label_id"]}


_attempt = st.fixed_dictionaries(
    {
        "stop_reason": st.sampled_from(["eos", "length", "finished"]),
        "status": st.sampled_from(["judged", "truncated", "malformed", "timeout"]),
        "answer": st.sampled_from([None, "a", "b", "c", "d"]),
        "reward": st.sampled_from([None, -1.0, 0.0, 0.5, 1.0]),
    }
)


@settings(deadline=None)
@given(st.lists(_attempt, max_size=12), st.integers(1, 4) | st.none(), st.booleans())
def test_each_attempt_is_kept_or_rejected(changes: list[dict[str, Any]], limit: int | None, training: bool) -> None:
    attempts = [row(index, **change) for index, change in enumerate(changes)]
    kept, dropped = filtering.select(attempts, parameters.Filter(threshold=0.5, per_problem=limit), training, DOMAIN)
    indices = [attempt["index"] for attempt in kept] + [attempt["index"] for attempt, _ in dropped]
    assert sorted(indices) == list(range(len(attempts)))
    assert len(kept) <= (limit or 12) * training
    assert len({attempt["answer"] for attempt in kept}) == len(kept)
    for attempt in kept:
        assert attempt["reward"] >= 0.5
        assert attempt["answer"] is not None
        assert attempt["stop_reason"] != "length"
    # Nothing dropped for its place beats what was kept.
    late = [attempt["reward"] for attempt, reason in dropped if reason == "over the share of its problem"]
    assert not late or max(late) <= min(attempt["reward"] for attempt in kept)


def put(layout: Layout, attempts: list[dict[str, Any]], rows_per_part: int = 250_000) -> None:
    new = layout.tmp / "new-attempts"
    with TableWriter(new, ATTEMPTS, rows_per_part) as writer:
        writer.write(attempts)
    replace_folder(new, layout.attempts, layout.tmp)


def test_the_stage_writes_labels_parents_and_rejected(layout: Layout, tiny: Params) -> None:
    train = [problem.problem_id for problem in read_problems(layout.problems, ["train"])][:3]
    test = read_problems(layout.problems, ["test"])[0].problem_id
    put(layout, [
        row(0, train[0]), row(1, train[0], answer="a0"), row(0, train[1], reward=0.0),
        row(0, train[2], stop_reason="finished"), row(0, test), row(0, "no problem of ours"),
    ])  # fmt: skip
    report = filtering.run(tiny, layout)
    assert (report.rows_in, report.rows_out) == (6, 2)
    assert report.notes == {
        "kept": 2, "below threshold": 1, "not a training problem": 2, "same answer as another": 1,
    }  # fmt: skip
    target = layout.labels(1)
    labels = read_rows(target / "labels", LABELS)
    assert [(label["problem_id"], label["kind"]) for label in labels] == [(train[0], "policy"), (train[2], "seed")]
    first = labels[0]
    assert first["content_id"] == content_id(train[0], "a0")
    assert (first["completion"], first["completion_ids"]) == ("answer 0", [6, 7, 1])
    assert (first["prompt_ids"], first["weight"], first["reward"]) == ([4, 5], 1.0, 1.0)
    parents = read_rows(target / "label_parents", LABEL_PARENTS)
    assert [(p["label_id"], p["parent_id"], p["role"]) for p in parents] == [
        (labels[0]["label_id"], f"{train[0]}-0", "attempt"),
        (labels[1]["label_id"], f"{train[2]}-0", "attempt"),
    ]
    rejected = {entry["attempt_id"]: entry["reason"] for entry in read_rows(target / "rejected", REJECTED)}
    assert len(rejected) == 4
    assert rejected[f"{test}-0"] == "not a training problem"
    assert filtering.run(tiny, layout).reused


def test_a_problems_attempts_may_lie_in_several_batches_and_parts(layout: Layout, tiny: Params) -> None:
    """25 000 attempts at one problem: more than a batch of reading, and cut into parts in the middle."""
    train = [problem.problem_id for problem in read_problems(layout.problems, ["train"])][:3]
    many = [row(index, train[1], answer=f"a{index % 7}") for index in range(25_000)]
    put(layout, [row(0, train[0]), *many, row(0, train[2])], rows_per_part=9_000)
    assert len(list(layout.attempts.glob("*.parquet"))) == 3
    filtering.run(tiny, layout)
    labels = read_rows(layout.labels(1) / "labels", LABELS)
    found = [label["completion"] for label in labels if label["problem_id"] == train[1]]
    assert found == [f"answer {index}" for index in range(tiny.filter.per_problem or 0)]
    assert len(labels) == len(found) + 2
    assert count_rows(layout.labels(1) / "rejected") == 25_002 - len(labels)


def test_no_attempts_make_empty_tables_with_their_schema(layout: Layout, tiny: Params) -> None:
    put(layout, [])
    report = filtering.run(tiny, layout)
    assert (report.rows_in, report.rows_out) == (0, 0)
    (part,) = (layout.labels(1) / "labels").glob("*.parquet")
    assert pq.read_schema(part).names == LABELS.names


def test_a_stopped_filter_leaves_nothing_in_place(layout: Layout, tiny: Params) -> None:
    train = read_problems(layout.problems, ["train"])[0].problem_id
    put(layout, [row(0, train)])

    def stop() -> None:
        raise Interrupted("stop")

    with pytest.raises(Interrupted):
        filtering.run(tiny, layout, Hooks(should_stop=stop))
    assert not layout.labels(1).exists()
    assert filtering.run(tiny, layout).rows_out == 1


def test_the_window_does_not_void_a_filtering_but_the_threshold_does(layout: Layout, tiny: Params) -> None:
    train = read_problems(layout.problems, ["train"])[0].problem_id
    put(layout, [row(0, train, reward=0.7)])
    assert filtering.run(tiny, layout).rows_out == 0
    wider = tiny.model_copy(update={"filter": parameters.Filter(window=2)})
    assert filtering.run(wider, layout).reused, "the window is train's"
    lower = tiny.model_copy(update={"filter": parameters.Filter(threshold=0.5)})
    assert filtering.run(lower, layout).rows_out == 1
    assert json.loads((layout.work(1) / "filter.json").read_text())["report"]["rows_out"] == 1
