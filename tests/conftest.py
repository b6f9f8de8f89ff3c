"""Fixtures for all tests that want them."""

pytest_plugins = ["tests.command_line", "tests.warm_process", "tests.ppo_runs", "tests.small_disk"]
