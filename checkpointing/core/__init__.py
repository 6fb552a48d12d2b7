"""The decisions of the checkpointing package: pure functions and values, without I/O, clocks or randomness."""
