"""Schedules without services: what is refused, what is stored, and which moments a cron names."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from flows import schedule as schedules
from flows.ticks import Schedule, local_timezone, read_schedule
from flywheel.errors import ConfigError, RegistryError
from storage.layout import Layout

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


@pytest.mark.parametrize("cron", ["", "* * * *", "* * * * * *", "@daily", "61 * * * *", "a b c d e", "0 0 31 2 x"])
def test_a_bad_cron_is_refused_with_the_five_fields(layout: Layout, cron: str) -> None:
    with pytest.raises(ConfigError, match="five fields: minute hour day-of-month month day-of-week"):
        schedules.schedule(layout, cron)
    assert read_schedule(layout) is None


def test_every_problem_is_told_at_once(layout: Layout) -> None:
    with pytest.raises(ConfigError) as caught:
        schedules.schedule(layout, "nonsense", generations=0, until_plateau=0, timezone="Mars/Base", on_failure="")
    assert len(caught.value.problems) == 5


def test_missed_all_and_skip_contradict(layout: Layout) -> None:
    with pytest.raises(ConfigError, match="needs when_busy: queue"):
        schedules.schedule(layout, "0 2 * * *", missed="all")


def test_a_dry_run_names_the_next_five_and_stores_nothing(layout: Layout) -> None:
    shown = schedules.schedule(layout, " 30  2 * * * ", timezone="Europe/Amsterdam", dry_run=True)
    moments = [datetime.fromisoformat(moment) for moment in shown["next"]]
    assert [(moment.hour, moment.minute) for moment in moments] == [(2, 30)] * 5
    assert all(moment.utcoffset() in (timedelta(hours=1), timedelta(hours=2)) for moment in moments)
    days = [moment.date().toordinal() for moment in moments]
    assert days == list(range(days[0], days[0] + 5))
    assert shown["cron"] == "30 2 * * *"
    assert shown["served"] is False
    assert not layout.local.exists()


def test_a_schedule_is_stored_and_forgotten(layout: Layout) -> None:
    shown = schedules.schedule(layout, "0 2 * * 1-5", generations=2, when_busy="queue", missed="all")
    assert shown["served"] is False  # the services are not up
    assert read_schedule(layout) == Schedule("0 2 * * 1-5", local_timezone(), 2, None, "queue", "all")
    assert schedules.unschedule(layout) is True
    assert read_schedule(layout) is None
    assert schedules.unschedule(layout) is False


def test_options_reach_the_campaign_and_leave_the_recipe_alone(layout: Layout) -> None:
    import inspect

    from flows.campaign import campaign

    command = "notify --text 'it \"failed\": badly'"
    wanted = Schedule("0 2 * * *", "UTC", until_plateau=3, on_failure=command)
    parameters = wanted.parameters(layout)
    assert (parameters["registry"], parameters["generations"]) == (str(layout.root), 1)
    assert (parameters["until_plateau"], parameters["on_failure"]) == (3, command)
    assert "overrides" not in parameters
    inspect.signature(campaign.fn).bind(**parameters)


@pytest.mark.parametrize("text", ["{", "[]", '{"cron": "0 2 * * *"}', '{"cron": "x", "timezone": "UTC"}'])
def test_a_damaged_file_is_named(layout: Layout, text: str) -> None:
    layout.local.mkdir()
    (layout.local / "schedule.json").write_text(text)
    with pytest.raises(RegistryError, match=r"schedule\.json is damaged"):
        read_schedule(layout)


def test_the_local_timezone_follows_tz(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert local_timezone() == "Asia/Tokyo"


@pytest.mark.parametrize("cron", ["0 2 * * *", "*/15 9-17 * * 1-5", "30 4 1,15 * *", "0 0 29 2 *", "0 2 1 * 1"])
@pytest.mark.parametrize("timezone", ["UTC", "Europe/Amsterdam", "America/New_York"])
def test_the_ticks_shown_are_those_that_prefect_will_run(cron: str, timezone: str) -> None:
    import asyncio

    from prefect.server.schemas.schedules import CronSchedule

    dates = asyncio.run(CronSchedule(cron=cron, timezone=timezone).get_dates(5))
    shown = [datetime.fromisoformat(moment) for moment in Schedule(cron, timezone).next(5)]
    assert shown == [date.replace(microsecond=0) for date in dates]
