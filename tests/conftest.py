"""Shared fixtures: where trained checkpoints may be, and tiny ones made on the spot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def example_model() -> Path:
    """The bundled trained model."""
    return REPOSITORY / "examples" / "model"


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Trained checkpoints beside the repository; tests that need them skip without."""
    folder = SHARED / "models"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: trained checkpoints are not part of the repository")
    return folder


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stage cache of this test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SLM_EXPORT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _offline() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
