"""Embeddings from all layers of frozen encoders: networks, fusion, search and linear evaluation."""
