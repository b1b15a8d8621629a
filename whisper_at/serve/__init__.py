"""An HTTP server: OpenAI's routes for transcription, which also tell what else sounds, and a page."""

from .app import create_app
from .limits import Limits

__all__ = ["Limits", "create_app"]
