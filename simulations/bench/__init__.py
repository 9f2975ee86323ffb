"""Benchmarks, each a module to run with ``python -m fleetdraft.simulations.bench.NAME``."""
