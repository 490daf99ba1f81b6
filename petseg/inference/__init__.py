"""Trained networks: scoring, predicting, exporting."""
