"""Ordered sample indices in, uint8 batches on the device out."""
