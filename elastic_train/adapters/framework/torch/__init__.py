"""PyTorch: groups formed and aborted in place, and a step engine with a reducer of its own.

Importing this package does not import torch: the driver only needs to know what a warm worker pool imports.
"""

PRELOAD = ("torch", "torch.distributed", "torch._dynamo", "torch.nn.parallel.distributed", "numpy")
"""What a warm worker pool imports in advance; DistributedDataParallel alone needs 800 modules of torch._dynamo."""
