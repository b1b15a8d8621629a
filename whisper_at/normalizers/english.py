"""`whisper.normalizers.english` of the installed openai-whisper, under this package's name."""

from whisper.normalizers.english import *
