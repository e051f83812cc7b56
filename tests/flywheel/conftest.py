"""A tiny Countdown domain and tiny models, made once a session."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flywheel import params
from flywheel.models import language
from flywheel.models.language import LanguageModel
from flywheel.problems.countdown import Countdown

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
