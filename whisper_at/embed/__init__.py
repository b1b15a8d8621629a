"""Embeddings from all layers of frozen encoders: networks, fusion, files of embeddings, search, linear evaluation.

>>> import torch
>>> from whisper_at.embed import load_fusion
>>> model = load_fusion("nano.en", layers=[0, 2])
>>> model.encode_clip(torch.zeros(1, 16000)).shape
torch.Size([1, 256])
"""

from .cnn14 import CNN14 as CNN14
from .cnn14 import load_cnn14 as load_cnn14
from .embedding import Embedding as Embedding
from .embedding import Failure as Failure
from .embedding import embed as embed
from .fusion import PRESETS as PRESETS
from .fusion import Fusion as Fusion
from .fusion import load_fusion as load_fusion
from .general_purpose import GeneralPurposeCnn14 as GeneralPurposeCnn14
from .general_purpose import GeneralPurposeVGGish as GeneralPurposeVGGish
from .network import LayeredNetwork as LayeredNetwork
from .search import SearchResult as SearchResult
from .search import search_recording as search_recording
from .search import search_vectors as search_vectors
from .store import EmbeddingBatch as EmbeddingBatch
from .store import EmbeddingWriter as EmbeddingWriter
from .store import read_batches as read_batches
from .store import read_config as read_config
from .vggish import VGGish as VGGish
from .vggish import load_vggish as load_vggish
