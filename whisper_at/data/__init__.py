"""Labelled recordings and the readers of public data sets, used by train, adapt, embed and study."""
