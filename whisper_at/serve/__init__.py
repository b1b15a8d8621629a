"""An HTTP server: OpenAI's routes for transcription, which also tell what else sounds, and a page."""

from .app import Limits, create_app

__all__ = ["Limits", "create_app"]
