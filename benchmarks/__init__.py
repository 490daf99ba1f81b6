"""Throughput reports: every stage of petseg against its peers and its ceiling. `python -m benchmarks --help`."""
