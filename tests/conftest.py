"""Fixtures for all tests that want them."""

import os

import pytest

pytest_plugins = ["tests.command_line", "tests.warm_process", "tests.ppo_runs", "tests.small_disk"]


@pytest.fixture(autouse=True)
def own_environment():
    """Lightning leaves its rank and W&B its service in the environment, where later commands would take them up."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
