"""Array libraries, each behind its own door and imported when the first of its tensors is met."""

from checkpointing.codecs.registry import CodecRegistry

__all__ = ["CodecRegistry"]
