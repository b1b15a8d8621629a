"""Recipes of heads: settings for ``whisper-at train --config``, and cross-validation."""
