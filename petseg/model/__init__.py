"""Networks, augmentation, losses and metrics."""
