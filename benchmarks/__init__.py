"""Benchmarks: each is a module that prints its figures and, as its last line, one JSON object with all of them."""
