"""The command under test, with one stage cache for the whole session."""

from __future__ import annotations

import pytest

from tests.conftest import REPOSITORY
from tests.end_to_end.command import SlmExport


@pytest.fixture(scope="session")
def slm_export(tmp_path_factory: pytest.TempPathFactory) -> SlmExport:
    return SlmExport(REPOSITORY, tmp_path_factory.mktemp("stage-cache"))
