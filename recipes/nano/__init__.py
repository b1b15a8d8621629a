"""Training recipe of nano.en, the miniature Whisper inside the package; see README.md."""
