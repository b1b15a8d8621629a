"""Names that stay for one release."""

from __future__ import annotations

import pytest

from whisper_at import data
from whisper_at.train import data as deprecated


def test_the_readers_of_data_are_still_found_under_train():
    with pytest.warns(DeprecationWarning, match=r"use whisper_at\.data"):
        assert deprecated.read_dataset is data.read_dataset
    with pytest.raises(AttributeError, match="no attribute 'gone'"):
        _ = deprecated.gone
