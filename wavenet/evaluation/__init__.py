"""Evaluation: bits per sample and baselines."""
