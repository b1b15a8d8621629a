"""Training of heads on the pooled states of a frozen Whisper: features on disk, recipe, metrics, calibration, report."""
