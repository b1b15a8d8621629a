"""Settings: presets by the published table, TOML, the command line, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from whisper_at.data.toml import read_toml
from whisper_at.train.config import (
    Settings,
    by_gradient_descent,
    parse_assignments,
    preset_settings,
    resolve_settings,
    update_settings,
)


@pytest.mark.parametrize(
    ("width", "mode", "rate", "epochs", "average"),
    [
        (384, "tl_tr_1_8", 1e-4, 50, (21, 50)),
        (512, "tl_tr_1_8", 1e-4, 50, (21, 50)),
        (768, "tl_tr_1_8", 1e-4, 50, (21, 50)),
        (768, "tl_down_tr_512_1_8", 1e-4, 50, (21, 50)),
        (1024, "tl_tr_1_8", 5e-5, 30, (16, 30)),
        (1024, "tl_down_tr_512_1_8", 1e-4, 30, (16, 30)),
        (1280, "tl_tr_1_8", 5e-5, 30, (16, 30)),
        (1280, "tl_down_tr_512_1_8", 1e-4, 30, (16, 30)),
    ],
)
def test_presets_are_the_published_table(width, mode, rate, epochs, average):
    """Section 3.5."""
    s = preset_settings("audioset", width, mode)
    assert (s.rate, s.epochs, s.average) == (rate, epochs, average)
    assert (s.optimizer, s.betas, s.weight_decay, s.batch, s.loss) == ("adam", (0.95, 0.999), 5e-7, 48, "bce")
    assert (s.mixup, s.mixup_alpha, s.time_mask, s.freq_mask, s.smoothing) == (0.5, 10, 10, 0, 0.1)
    assert s.balanced
    assert s.epoch_share == 0.1
    assert s.rows == (25,)
    assert s.protocol == "10"
    factors = [s.schedule()(epoch, []) for epoch in (0, 14, 15, 19, 20, 29)]
    np.testing.assert_allclose(factors, [1, 1, 0.75, 0.75, 0.5625, 0.421875])


def test_the_default_head_is_fitted_in_closed_form_to_all_clips():
    own, attention = preset_settings("own", 512), preset_settings("own", 512, "tl_tr_1_8")
    assert (own.mode, own.optimizer, own.valid_share) == ("stats_mlp", "ridge", 0)
    assert preset_settings("own", 512, "stats_mlp") == own
    descent = preset_settings("own", 512, "stats_mlp", "adamw")
    assert (descent.mode, descent.refit, descent.time_mask, descent.valid_share) == ("stats_mlp", True, 0, 0.2)
    own = resolve_settings("own", 512, {}, {"threshold_precision": 0.7, "rows": [5]}, None)
    assert by_gradient_descent(own) == replace(descent, threshold_precision=0.7, rows=(5,))
    assert attention == Settings(mode="tl_tr_1_8")  # as of 1.0.0


def test_what_a_closed_form_does_not_use_is_refused():
    with pytest.raises(ValueError, match="epochs does nothing to a head that is fitted in closed form"):
        resolve_settings("own", 512, {"epochs": 3}, {}, "a.toml")
    assert resolve_settings("own", 512, {"epochs": 3}, {"optimizer": "adamw"}, "a.toml").epochs == 3
    with pytest.raises(ValueError, match="optimizer=ridge is for mode stats_mlp"):
        resolve_settings("own", 512, {"mode": "wa_mlp"}, {"optimizer": "ridge"}, "a.toml")


def test_settings_come_from_toml_and_the_command_line(tmp_path):
    (tmp_path / "a.toml").write_text('mode = "mean_mlp"\nrows = [5, 10]\nrate = 1\nprotocol = 10\nseconds = 5\n')
    s = update_settings(Settings(), read_toml(tmp_path / "a.toml"), "a.toml")
    assert (s.mode, s.rows, s.rate, s.protocol, s.seconds) == ("mean_mlp", (5, 10), 1.0, "10", 5.0)
    s = update_settings(s, parse_assignments(["mode=wa_mlp", "rows=[3]", "rate=1e-4", "balanced=false"]), "--set")
    assert (s.mode, s.rows, s.rate, s.balanced) == ("wa_mlp", (3,), 1e-4, False)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("learning_rate=1", "no key"),
        ("epoch=5", "did you mean 'epochs'"),
        ("mixupp=1", "did you mean 'mixup'"),
        ("epochs=0", "between 1 and"),
        ("epochs=1.5", "a whole number"),
        ("rate=fast", "a number"),
        ("balanced=1", "true or false"),
        ("rows=[]", "at least one"),
        ("rows=5", "a list"),
        ("average=[5, 1000]", "first and a last epoch"),
        ("loss=mse", "auto, bce, ce"),
        ("smoothing=nan", "between"),
        ("rate", "name=value"),
    ],
)
def test_wrong_settings_are_named(pair, message):
    with pytest.raises(ValueError, match=message.replace(",", ".*")):
        update_settings(Settings(), parse_assignments([pair]), "--set")


def test_settings_that_are_no_toml(tmp_path):
    (tmp_path / "a.toml").write_text("rate = = 1")
    with pytest.raises(ValueError, match="is not TOML"):
        read_toml(tmp_path / "a.toml")
    with pytest.raises(FileNotFoundError, match=r"b\.toml"):
        read_toml(tmp_path / "b.toml")
