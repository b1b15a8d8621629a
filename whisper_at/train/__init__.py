"""Training of heads on pooled states of a frozen Whisper: features on disk, recipe, metrics, calibration, report."""
