"""`whisper.utils` of the installed openai-whisper, under this package's name; `get_writer` also takes tags."""

from whisper.utils import *  # noqa: F401,F403

from .writers import get_writer  # noqa: F401
