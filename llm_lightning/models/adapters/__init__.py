"""Adapters: peft's methods and bottlenecks, their special needs, and merging."""
