"""Responses that the base model finds too easy or too strange."""

from collections.abc import Iterator

import numpy as np

from datamodules.synthetic.candidate import Candidate
from datamodules.synthetic.filters.filter import Context, Filter, Scores, Threshold


class PerplexityBand(Filter):
    """Keeps the responses whose perplexity under the base model, given their prompts, lies in a band.

    Low is what the model says anyhow, or repetition; high is noise (Marion et al., "When Less is More", 2023, keep the
    middle). What is low depends on the model and on the texts, so that the band is in quantiles by default.

    Args:
        threshold: by default the middle nine tenths.
    """

    name = "perplexity"

    def __init__(self, threshold: Threshold = Threshold(0.05, 0.95, "quantile")) -> None:  # noqa: B008
        super().__init__(threshold)

    def scores(self, batches: Iterator[list[Candidate]], context: Context) -> Iterator[Scores]:
        """One number a record: the perplexity of its response."""
        engine = context.engine_for("PerplexityBand")
        for batch in batches:
            yield Scores(np.array(engine.perplexities([candidate.messages for candidate in batch]), np.float32))
