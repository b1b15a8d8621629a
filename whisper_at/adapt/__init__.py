"""Adapting frozen audio encoders: backbones, what methods add to them, and heads on top."""
