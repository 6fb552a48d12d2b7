"""A small language model on synthetic text, with the interface of `workload`: deterministic mode is measured on it."""

from __future__ import annotations

import torch
from torch import nn

GLOBAL_BATCH_SIZE = 32
_SYMBOLS, _WIDTH, _TOKENS, _POOL = 256, 192, 64, 8


class LanguageModel(nn.Module):
    """Four layers with dropout: 2.0 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_SYMBOLS, _WIDTH)
        self.place = nn.Parameter(torch.randn(_TOKENS, _WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(_WIDTH, 4, 4 * _WIDTH, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(_WIDTH, _SYMBOLS)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(_TOKENS), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits: [samples, symbols, tokens]."""
        hidden = self.layers(self.embedding(tokens) + self.place, mask=self.mask, is_causal=True)
        logits: torch.Tensor = self.head(hidden).transpose(1, 2)
        return logits


def build_model() -> nn.Module:
    """Return the model, the same weights each time."""
    torch.manual_seed(0)
    return LanguageModel()


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer all systems use."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def build_samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets, both [samples, tokens], of a pool of global batches."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, _SYMBOLS, (_POOL * GLOBAL_BATCH_SIZE, _TOKENS + 1), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def part_of(step: int, rank: int, world_size: int) -> slice:
    """Return which samples of the pool one worker computes in one step."""
    start = (step % _POOL) * GLOBAL_BATCH_SIZE
    first = start + GLOBAL_BATCH_SIZE * rank // world_size
    return slice(first, start + GLOBAL_BATCH_SIZE * (rank + 1) // world_size)
