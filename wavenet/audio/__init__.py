"""Sound files and signals: decoding, levels, mu-law, mel spectra, playback."""
