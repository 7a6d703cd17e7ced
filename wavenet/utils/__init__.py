"""Files, JSON, memory, processes and figures."""
