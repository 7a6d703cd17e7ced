"""Command lines: they parse, then call."""
