"""Records that are too short or too long."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from datamodules.encoding.tokenizer import load_tokenizer
from datamodules.errors import DataError
from datamodules.synthetic.candidate import Candidate
from datamodules.synthetic.filters.filter import Context, Filter, Scores, Threshold


class Length(Filter):
    """Keeps records by their length, in words, characters or tokens.

    Args:
        threshold: by default at least one and at most 2,000 words.
        unit: words are what stands between spaces; Chinese, Japanese and Thai are better counted in characters.
        of: `answer`, `prompt`, or `text`: all that was said.
        tokenizer: hub id or folder; for tokens.
    """

    too_low, too_high = "too short", "too long"

    def __init__(
        self,
        threshold: Threshold = Threshold(min=1, max=2000),  # noqa: B008
        unit: Literal["words", "characters", "tokens"] = "words",
        of: Literal["answer", "prompt", "text"] = "answer",
        tokenizer: str | None = None,
    ) -> None:
        super().__init__(threshold)
        if (unit == "tokens") != (tokenizer is not None):
            raise DataError("filters: Length needs a tokenizer to count tokens, and for nothing else")
        self.unit, self.of, self.tokenizer = unit, of, tokenizer
        self.name = f"{of}_{unit}"

    def scores(self, batches: Iterator[list[Candidate]], context: Context) -> Iterator[Scores]:
        """One number a record: how long it is."""
        tokenizer = None if self.tokenizer is None else load_tokenizer(self.tokenizer)
        for batch in batches:
            texts = [getattr(candidate, self.of) for candidate in batch]
            if tokenizer is not None:
                lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids]
            else:
                lengths = [len(text.split() if self.unit == "words" else text) for text in texts]
            yield Scores(np.array(lengths, np.float32))
