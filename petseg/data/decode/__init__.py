"""Encoded bytes to pixels, and the one resize: shared by packing, the loaders and prediction."""
