"""What a quantized network may cost, and which of several is kept."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from callbacks.errors import CallbackError
from callbacks.monitoring.measurement import Quality, Speed


@dataclass(frozen=True)
class Measured:
    """A network and what was measured of it.

    Args:
        name: Of its scheme; `original` for the unquantized one.
        quality: On the validation data.
        speed: Of one text.
        disk_bytes: Of its folder.
        memory_bytes: Of its weights and buffers.
        seconds: That quantizing took.
    """

    name: str
    quality: Quality
    speed: Speed
    disk_bytes: int
    memory_bytes: int
    seconds: float = 0.0

    def increase_over(self, original: "Measured") -> float:
        """Relative increase of the perplexity."""
        return math.exp(min(self.quality.loss - original.quality.loss, 700.0)) - 1

    def as_dict(self) -> dict[str, Any]:
        """The figures, as JSON can write them."""
        return {
            "perplexity": self.quality.perplexity,
            "loss": self.quality.loss,
            "kl": self.quality.kl,
            "top_token_agreement": self.quality.top_token_agreement,
            "num_tokens": self.quality.num_tokens,
            "disk_bytes": self.disk_bytes,
            "memory_bytes": self.memory_bytes,
            "prefill_tokens_per_s": self.speed.prefill_tokens_per_s,
            "decode_tokens_per_s": self.speed.decode_tokens_per_s,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, name: str, figures: Mapping[str, Any]) -> "Measured":
        """What `as_dict` wrote."""
        quality = Quality(*(figures[key] for key in ("loss", "num_tokens", "kl", "top_token_agreement")))
        speed = Speed(figures["prefill_tokens_per_s"], figures["decode_tokens_per_s"])
        return cls(name, quality, speed, figures["disk_bytes"], figures["memory_bytes"], figures["seconds"])


@dataclass(frozen=True)
class CompressionBudget:
    """The most that what is kept may cost.

    Args:
        perplexity_increase: Relative, over the original's; None for no limit.
        megabytes: Of the folder, in 10^6 bytes; None for no limit.
        perplexity: Whatever the original's is; None for no limit.
        tokens_per_s: The least that it must write; None for no limit.
    """

    perplexity_increase: float | None = None
    megabytes: float | None = None
    perplexity: float | None = None
    tokens_per_s: float | None = None

    @classmethod
    def of(
        cls,
        perplexity_increase: float | str | None,
        megabytes: float | None,
        perplexity: float | None = None,
        tokens_per_s: float | None = None,
    ) -> "CompressionBudget":
        """From settings, where `2%` is 0.02.

        Raises:
            CallbackError: One is negative, or no number.
        """
        value = perplexity_increase
        if isinstance(value, str):
            try:
                value = float(value.rstrip("% ")) / (100 if value.endswith("%") else 1)
            except ValueError:
                value = math.nan
        if value is not None and not value >= 0:
            raise CallbackError(
                f"Quantization.max_perplexity_increase={perplexity_increase!r} is no share: give 0.02 or 2%."
            )
        for name, limit in (
            ("max_megabytes", megabytes),
            ("max_perplexity", perplexity),
            ("min_tokens_per_s", tokens_per_s),
        ):
            if limit is not None and not limit > 0:
                raise CallbackError(f"Quantization.{name}={limit} must be above 0.")
        return cls(value, megabytes, perplexity, tokens_per_s)

    def refusal(self, measured: Measured, original: Measured) -> str:
        """Why a network cannot be kept, in words; empty where it holds the limits."""
        if not math.isfinite(measured.quality.loss):
            return "its loss is not finite"
        increase = measured.increase_over(original)
        if self.perplexity_increase is not None and increase > self.perplexity_increase:
            return f"perplexity {increase:+.1%}, over {self.perplexity_increase:.1%}"
        if self.perplexity is not None and measured.quality.perplexity > self.perplexity:
            return f"perplexity {measured.quality.perplexity:,.2f}, over {self.perplexity:,.2f}"
        size = measured.disk_bytes / 1e6
        if self.megabytes is not None and size > self.megabytes:
            return f"{size:,.1f} MB, over {self.megabytes:g}"
        speed = measured.speed.decode_tokens_per_s
        if self.tokens_per_s is not None and speed < self.tokens_per_s:
            return f"writes {speed:,.1f} tokens/s, under {self.tokens_per_s:g}"
        return ""

    def choose(self, candidates: Sequence[Measured], original: Measured) -> Measured | None:
        """The smallest on disk that holds the limits, or where no perplexity is one the best; None if none does."""
        holding = [each for each in candidates if not self.refusal(each, original)]
        limits_quality = self.perplexity_increase is not None or self.perplexity is not None
        if not limits_quality and (self.megabytes is not None or self.tokens_per_s is not None):
            return min(holding, key=lambda each: each.quality.loss, default=None)
        return min(holding, key=lambda each: (each.disk_bytes, each.quality.loss), default=None)
