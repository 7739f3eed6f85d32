"""Fixtures of the tests of training."""

import pytest

from tests.conftest import Small
from tests.training.rich import rich_log


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A log with sequences, lists, weights and unknown labels; its jobs are given ``**rich.job``."""
    return rich_log(tmp_path_factory.mktemp("rich"))
