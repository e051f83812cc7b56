"""A tiny Countdown domain and tiny models, made once a session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flywheel import params
from flywheel.models import language, server_client
from flywheel.models.language import LanguageModel
from flywheel.problems.countdown import Countdown
from tests.flywheel.small_server import Dialect, SmallServer, serving

TINY = params.Model(hidden_size=16, layers=2, heads=2, intermediate_size=32)


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> None:
    """Tiny models gain nothing by threads, and threads that wait for one another on a busy machine lose much."""
    if "model_folder" in request.fixturenames or "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def countdown() -> Countdown:
    return Countdown(3, 1, 9, 40, (0.6, 0.2, 0.2))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, countdown: Countdown) -> Path:
    """A Llama from scratch with random weights. Never change it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    language.create(TINY, countdown.vocabulary(), (), 7, folder)
    return folder


@pytest.fixture
def tiny(model_folder: Path) -> LanguageModel:
    """The model, loaded anew: a test may train it."""
    return language.load(model_folder, "cpu")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses before a request is sent again are short, and no key of this machine's is sent along."""
    monkeypatch.setattr(server_client, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def small() -> Iterator[SmallServer]:
    """A server that can do all."""
    with serving(Dialect()) as running:
        yield running
