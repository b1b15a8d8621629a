"""Pooled states of labelled clips: encoding clips, storing their states on disk, reading them again."""
