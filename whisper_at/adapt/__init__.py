"""Parameter-efficient adaptation of frozen audio encoders: backbones, methods, heads and classifiers.

>>> import torch
>>> from whisper_at.adapt import adapt, load_backbone
>>> backbone = load_backbone("nano.en", "cpu")
>>> adapt(backbone, {"name": "lora", "sites": ["q", "v"], "rank": 8, "alpha": 8})
>>> hidden = backbone(torch.zeros(1, 16000))
>>> len(hidden.states), hidden.states[0].shape
(5, torch.Size([1, 50, 128]))
"""

from .backbones import Backbone as Backbone
from .backbones import Hidden as Hidden
from .backbones import load_backbone as load_backbone
from .backbones import random_backbone as random_backbone
from .backbones import transformers_backbone as transformers_backbone
from .backbones import whisper_backbone as whisper_backbone
from .classifier import AudioClassifier as AudioClassifier
from .methods import METHODS as METHODS
from .methods import adapt as adapt
from .methods import count_parameters as count_parameters
from .methods import merge as merge
from .methods import unmerge as unmerge
from .peft_files import load_peft as load_peft
from .peft_files import save_peft as save_peft
from .pretrained import load_model as load_model
from .trainer import Recipe as Recipe
