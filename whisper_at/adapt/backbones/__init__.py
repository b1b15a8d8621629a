"""Pretrained encoders of speech and sound behind one interface: a front end, L blocks and a final norm."""

from .backbone import Backbone as Backbone
from .backbone import Hidden as Hidden
from .backbone import TokenPatch as TokenPatch
from .backbone import Tokens as Tokens
from .loading import load_backbone as load_backbone
from .loading import random_backbone as random_backbone
from .loading import transformers_backbone as transformers_backbone
from .loading import whisper_backbone as whisper_backbone
