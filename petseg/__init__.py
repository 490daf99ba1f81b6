"""petseg: pack segmentation data once, load it fast, train on it.

Placeholder until the public names exist.
"""
