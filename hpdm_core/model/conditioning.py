"""Conditioning tokens: the noise level, and a class or text (design of Fig. 11, Table 8).

Axis legend: `b` batch, `k` conditioning tokens, `d` width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpdm_core.errors import DataError
from hpdm_core.records import Condition


class NoiseEmbedding(nn.Module):
    """Sinusoids of c_noise = ln(sigma) / 4 (EDM), then two linear layers around a SiLU.

    Args:
        width: width of the token; even.
    """

    # ln(sigma) / 4 spans some 2.7 for sigma in 0.002..80: the slowest sinusoid must still
    # separate its ends, the fastest one neighbouring solver steps.
    FASTEST, SLOWEST = 100.0, 0.1

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, c_noise: Tensor) -> Tensor:
        """Embed (b,) ln(sigma) / 4 as (b, d) tokens."""
        half = self.up.in_features // 2
        ratio = math.log(self.SLOWEST / self.FASTEST) / max(half - 1, 1)
        steps = torch.arange(half, device=c_noise.device, dtype=torch.float32)
        angles = c_noise.float()[:, None] * (self.FASTEST * torch.exp(ratio * steps))
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.down(F.silu(self.up(waves)))


class ConditioningTokens(nn.Module):
    """Join the noise level's token with the class's or the text's tokens.

    Args:
        width: width of the tokens that blocks read.
        num_classes: number of classes, without the entry for 'none'; None without classes.
        condition_width: width of class embeddings or of text tokens; None without either.
    """

    def __init__(self, width: int, *, num_classes: int | None, condition_width: int | None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.noise = NoiseEmbedding(width)
        self.classes = (
            nn.Embedding(num_classes + 1, condition_width) if num_classes is not None else None
        )
        self.project = nn.Linear(condition_width, width) if condition_width is not None else None

    def forward(self, c_noise: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        """Return (b, k, d) tokens and their (b, k) mask (None if all are valid).

        Args:
            c_noise: (b,) ln(sigma) / 4.
            condition: (b,) rows; 'none' is the last class embedding, or a text whose tokens
                are all masked.

        Raises:
            DataError: `condition` lacks the labels or the text that the network takes.
        """
        noise = self.noise(c_noise)[:, None]
        if self.project is None:
            return noise, None
        if self.classes is not None:
            labels = condition.labels
            if labels is None:
                raise DataError(
                    "the network takes classes but the condition has no labels",
                    remedy="give Condition(labels=...), -1 where a video has none",
                )
            labels = torch.where(labels < 0, self.num_classes, labels)
            return torch.cat([noise, self.project(self.classes(labels))[:, None]], dim=1), None
        if condition.text is None or condition.text_mask is None:
            raise DataError(
                "the network takes text but the condition lacks text or text_mask",
                remedy="give Condition(text=..., text_mask=...), a row of False for no text",
            )
        text = self.project(condition.text.to(noise.dtype))
        always = torch.ones_like(condition.text_mask[:, :1])
        mask = torch.cat([always, condition.text_mask], dim=1)
        return torch.cat([noise, text], dim=1), mask
