"""The study of the paper: how noise hurts speech recognition, and what a recogniser's encoder knows of the noise."""
