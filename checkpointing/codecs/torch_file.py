"""torch's own file format, for those who want a state as one such file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_tree(tree: Any, path: Path) -> None:
    """Write a tree as `torch.load` reads it."""
    torch.save(tree, path)
