"""`whisper.utils` of the installed openai-whisper, under this package's name; `get_writer` also takes tags."""

from whisper.utils import *

from .writers import get_writer
