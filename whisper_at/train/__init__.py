"""Training on frozen features: data, the fitting loop, metrics, and the recipe of TL-TR heads."""
