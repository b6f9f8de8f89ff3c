"""A run's memory as a table."""

from llm_lightning.preflight.capacity import gib
from llm_lightning.preflight.run_memory import RunMemory


def in_table(memory: RunMemory) -> str:
    """A line for each part of what a step takes, and their sum beside the room there is."""
    assert memory.step is not None
    lines = [f"Memory of a step on each rank, at its peak ({memory.rows} x {memory.length:,} tokens):"]
    lines += [f"  {name:22}{gib(size):>12}" for name, size in memory.step.parts.items() if size]
    lines.append(
        f"  {'in all':22}{gib(memory.step.total):>12} of {gib(memory.capacity.total)}, {memory.capacity.where}"
    )
    return "\n".join(lines)
