"""Names and codes of languages, and models that know English only."""

from __future__ import annotations

import warnings

import pytest
from conftest import noise
from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

import whisper_at
from whisper_at.languages import _CODES, language_code

NAMES = {
    "en-US": "en",
    "EN": "en",
    " English ": "en",
    "en_US.UTF-8": "en",
    "zh-TW": "zh",
    "zh_Hant_TW": "zh",
    "zh-HK": "zh",
    "zh-yue": "yue",
    "yue-Hant-HK": "yue",
    "cmn-Hans-CN": "zh",
    "iw": "he",
    "iw-IL": "he",
    "in": "id",
    "ji": "yi",
    "jv": "jw",
    "jw": "jw",
    "mo": "ro",
    "nb-NO": "no",
    "NN-no": "nn",
    "fil-PH": "tl",
    "pt-BR": "pt",
    "pt-br": "pt",
    "sr-Latn-RS": "sr",
    "deu": "de",
    "GER": "de",
    "haw-US": "haw",
    "Castilian": "es",
    "haitian creole": "ht",
    "Chinese (Taiwan)": "zh",
    "auto": None,
    "AUTO": None,
    "und": None,
    "": None,
    None: None,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_language_is_whispers_whatever_it_is_called(name):
    assert language_code(name) == NAMES[name]


def test_all_of_whispers_codes_and_names_are_read_as_whisper_reads_them():
    for name, code in {**{code: code for code in LANGUAGES}, **TO_LANGUAGE_CODE}.items():
        assert language_code(name) == language_code(name.upper()) == code
        assert language_code(f"{code}-XX") == code
    assert set(_CODES.values()) <= set(LANGUAGES)
    assert not set(_CODES) & set(LANGUAGES) - {"jw"}


@pytest.mark.parametrize("name", ["Elvish", "xx", "xx-US", "-US", "e", "tlh", "12", "a" * 99])
def test_what_whisper_does_not_know_is_refused(name):
    with pytest.raises(ValueError, match=f"Whisper knows no language '{name}'; "):
        language_code(name)


def test_a_language_is_text():
    with pytest.raises(ValueError, match="by its name or code, not as 5"):
        language_code(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize(("name", "code"), [("de-AT", "de"), ("GERMAN", "de"), ("iw", "he"), ("zh_TW", "zh")])
def test_a_result_has_whispers_code(model_multilingual, name, code, batch_size):
    options = dict(temperature=0.0, sample_len=6, at_time_res=None, batch_size=batch_size)
    by_name = model_multilingual.transcribe(noise(4), language=name, **options)
    assert by_name["language"] == code
    assert by_name == model_multilingual.transcribe(noise(4), language=code, **options)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_auto_detects(model_multilingual, batch_size):
    options = dict(temperature=0.0, sample_len=6, at_time_res=None, batch_size=batch_size)
    assert model_multilingual.transcribe(noise(4), language="auto", **options) == model_multilingual.transcribe(
        noise(4), **options
    )


def test_decode_takes_the_same_names(model_multilingual):
    mel = whisper_at.log_mel_spectrogram(whisper_at.pad_or_trim(noise(4)))
    options = whisper_at.DecodingOptions(language="pt-BR", sample_len=6, fp16=False)
    assert whisper_at.decode(model_multilingual, mel, options).language == "pt"
    with pytest.raises(ValueError, match="Whisper knows no language 'Elvish'"):
        whisper_at.decode(model_multilingual, mel, language="Elvish", fp16=False)


def test_a_language_that_only_later_whispers_know_is_refused(model_multilingual):
    with pytest.raises(ValueError, match=r"this model does not know Cantonese \(yue\)"):
        model_multilingual.transcribe(noise(1), language="yue")


@pytest.mark.parametrize("language", ["pt-BR", "German"])
def test_labels_take_the_same_names(language):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where there are no names in it
        code = language_code(language)
        assert whisper_at.label_names(language) == whisper_at.label_names(code)


# --- English only -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"language": "de"}, "knows English only: language 'de' is taken as English"),
        ({"language": "zh-TW", "word_timestamps": True}, "language 'zh-TW' is taken as English"),
        ({"task": "translate"}, "it transcribes, and translates nothing"),
    ],
)
def test_an_english_model_says_what_it_cannot_do(model_en, options, says, batch_size):
    """Upstream transcribes, and its result says that the language was German."""
    audio, common = noise(4), dict(temperature=0.0, sample_len=6, batch_size=batch_size)
    with pytest.warns(UserWarning, match=says):
        result = model_en.transcribe(audio, **options, **common)
    assert (result["language"], result["task"]) == ("en", "transcribe")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*knows English only")
        words = options.get("word_timestamps", False)
        assert model_en.transcribe(audio, word_timestamps=words, **common)["text"] == result["text"]
        model_en.transcribe(audio, language="en-GB", **common)
