"""The pure core: values and decisions. No I/O, no clock, no random numbers; events in, effects out."""
