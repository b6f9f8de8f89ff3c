"""Fixtures that start the real command line, for all tests that want them."""

pytest_plugins = ["tests.command_line"]
