"""From source files to batches: sources, packing, shards, order, decoding, loaders."""
