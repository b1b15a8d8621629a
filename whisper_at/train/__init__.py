"""Training of heads on pooled states of a frozen Whisper: recipe, metrics, calibration, report."""
