"""Fixtures for all tests that want them."""

pytest_plugins = ["tests.command_line", "tests.small_disk"]
