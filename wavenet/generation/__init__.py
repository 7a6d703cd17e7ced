"""Generation: streams, sessions, supervision and saved states."""
