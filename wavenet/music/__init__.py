"""Scores: MIDI files, piano rolls, rule-based composition, alignment with recordings."""
