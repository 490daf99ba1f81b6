"""Packing samples into indexed tar shards, and reading their bytes back by sample index."""
