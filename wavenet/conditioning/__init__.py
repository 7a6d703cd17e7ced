"""Kinds of conditioning: one file per kind."""
