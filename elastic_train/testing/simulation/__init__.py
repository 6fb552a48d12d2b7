"""A deterministic simulation of whole jobs: the real membership core under faults, in one thread, from one seed.

``python -m elastic_train.testing.simulation --seeds 1000`` searches; what fails is made small and
saved as a scenario.
"""
