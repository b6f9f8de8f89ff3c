"""Benchmarks: every file with a command line of its own is one table."""
