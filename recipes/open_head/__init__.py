"""Heads over AudioSet's classes for tiny.en and base, from recordings that may be used freely (see README.md)."""
