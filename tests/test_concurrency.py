"""One model in several threads and in forked processes, and callers' own hooks: the results are those of it alone."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import whisper
from conftest import ROOT, noise
from torch import nn
from whisper import timing
from whisper.model import MultiHeadAttention

import whisper_at
from whisper_at.engine import isolation
from whisper_at.engine.weights import HOOKS, is_unmodified

OPTIONS = {
    "plain": {},
    "words": {"word_timestamps": True},
    "words, strict": {"word_timestamps": True, "strict_word_timing": True, "at_time_res": 0.4},
    "words, tags": {"word_timestamps": True, "at_time_res": (0.4, 2)},
    "beams": {"beam_size": 3, "at_time_res": None},
    "beams, words": {"beam_size": 2, "word_timestamps": True},
    "batches": {"batch_size": 2, "at_time_res": 2},
    "batches, words": {"batch_size": 3, "word_timestamps": True},
    "clips": {"clip_timestamps": [1.0, 7.0, 9.0, 20.0], "word_timestamps": True},
    "prompt": {"initial_prompt": "One two three.", "without_timestamps": True},
}


def transcribe(model, name, seed=0):
    seconds = 32 if name == "clips" or name.startswith("batches") else 8  # of several windows, or of one
    return model.transcribe(
        noise(seconds, seed), language="en", temperature=0.0, fp16=False, sample_len=5, **OPTIONS[name]
    )


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)  # sums by alignment
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert_same(one, other)
    else:
        assert found == expected


def hooks_of(model):
    return {(name, kind): dict(getattr(part, kind)) for name, part in model.named_modules() for kind in HOOKS}


def assert_as_it_was(model, hooks):
    """No hook came or went, nothing was patched, no class was changed; it pickles and is transcribed with."""
    assert hooks_of(model) == hooks
    assert MultiHeadAttention.use_sdpa
    assert not any({"forward", "qkv_attention"} & vars(part).keys() for part in model.modules())


# --- models that are used as they are, and such as callers have changed --------------------------------------


def plain(model):
    pass


def hooked_encoder(model):
    model.encoder.blocks[1].register_forward_hook(observe)


def hooked_decoder(model):
    model.decoder.blocks[0].cross_attn.register_forward_hook(observe)


def hooked_decoder_and_encoder(model):
    hooked_encoder(model)
    hooked_decoder(model)


def observe(module, inputs, output):
    return None


class Doubled(nn.Module):
    """A wrapped layer, as adapters make them."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) + 0.01 * x.mean()


def wrapped_layers(model):
    model.encoder.blocks[0].mlp[0] = Doubled(model.encoder.blocks[0].mlp[0])
    model.decoder.blocks[1].attn.out = Doubled(model.decoder.blocks[1].attn.out)


def cache_hooks(model):
    model.install_kv_cache_hooks()


CHANGES = [plain, hooked_encoder, hooked_decoder, hooked_decoder_and_encoder, wrapped_layers, cache_hooks]


@pytest.mark.parametrize("change", [plain, hooked_decoder_and_encoder, wrapped_layers, cache_hooks])
def test_threads_give_what_one_gives(model_en, change):
    change(model_en)
    hooks = hooks_of(model_en)
    names = list(OPTIONS) if change is plain else ["words, tags", "beams, words"]
    expected = {name: transcribe(model_en, name) for name in names}
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda name: (name, transcribe(model_en, name)), names if change is plain else names * 2))
    for name, result in found:
        assert_same(result, expected[name])
    assert_as_it_was(model_en, hooks)
    if change is not cache_hooks:  # a closure, as openai-whisper makes it
        assert_same(transcribe(pickle.loads(pickle.dumps(model_en)), names[-1]), expected[names[-1]])


@pytest.mark.parametrize("compute_type", ["bfloat16", "int8"])
def test_threads_in_other_precisions(model_en, compute_type):
    model_en.compute_type = compute_type
    names = ["words, tags", "beams", "batches, words"]
    expected = {name: transcribe(model_en, name) for name in names}
    with ThreadPoolExecutor(3) as pool:
        for name, result in pool.map(lambda name: (name, transcribe(model_en, name)), names):
            assert_same(result, expected[name])


def test_threads_that_start_together_on_a_new_model(model_en):
    """What is made when it is first needed is made once."""
    made = []
    real = isolation.LOCK
    barrier = threading.Barrier(4)

    def first():
        barrier.wait()
        made.append(model_en.fast_decoder(torch.float32))

    callers = [threading.Thread(target=first) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(made) == 4
    assert len({id(decoder) for decoder in made}) == 1
    assert isolation.LOCK is real


def test_asyncio(model_en):
    expected = {name: transcribe(model_en, name) for name in ("words", "beams")}

    async def both():
        return await asyncio.gather(*(asyncio.to_thread(transcribe, model_en, name) for name in expected))

    for result, name in zip(asyncio.run(both()), expected):
        assert_same(result, expected[name])


def test_languages_are_detected_in_threads(model_multilingual):
    hooked_decoder(model_multilingual)
    mel = whisper.log_mel_spectrogram(noise(30))
    expected = model_multilingual.detect_language(mel)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: model_multilingual.detect_language(mel), range(8)):
            assert_same(found, expected)


@pytest.mark.parametrize("change", CHANGES)
def test_an_exception_leaves_the_model_as_it_was(model_en, change, monkeypatch):
    """Raised while openai-whisper has its hooks in place."""
    change(model_en)
    hooks = hooks_of(model_en)
    expected = transcribe(model_en, "words")

    def fail(*_):
        raise RuntimeError("in the middle")

    for place in ("dtw", "median_filter") if change is plain else ("dtw",):
        monkeypatch.setattr(timing, place, fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            transcribe(model_en, "words")
        monkeypatch.undo()
        assert_as_it_was(model_en, hooks)
    handle = model_en.decoder.ln.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        transcribe(model_en, "words")
    handle.remove()
    assert_as_it_was(model_en, hooks)
    assert_same(transcribe(model_en, "words"), expected)


def test_a_replaced_method_that_refers_to_the_model(model_en):
    """Modules of our own would not be reached by it: the model's are used, in turns, and left as they were."""
    real = model_en.decoder.forward
    model_en.decoder.forward = lambda *args, **options: real(*args, **options)
    assert isolation.copy_modules(model_en) is None
    hooks = hooks_of(model_en)
    expected = {name: transcribe(model_en, name) for name in ("words", "beams")}
    with ThreadPoolExecutor(4) as pool:
        for name, result in pool.map(lambda name: (name, transcribe(model_en, name)), list(expected) * 2):
            assert_same(result, expected[name])
    assert hooks_of(model_en) == hooks
    plain_model = copy.deepcopy(model_en)
    del plain_model.decoder.forward
    assert expected["words"]["text"] == transcribe(plain_model, "words")["text"]


def test_modules_of_our_own(model_en):
    """Parameters, buffers and callers' hooks are shared; hooks that are put on one are not on the other."""
    calls = []
    model_en.encoder.blocks[0].register_forward_hook(lambda *_: calls.append("caller"))
    model_en.encoder.blocks[1].forward = model_en.encoder.blocks[1].forward  # a bound method
    own = isolation.copy_modules(model_en)
    assert {id(p) for p in own.parameters()} == {id(p) for p in model_en.parameters()}
    assert own.encoder.blocks[1].forward.__self__ is own.encoder.blocks[1]
    own.encoder.blocks[1].register_forward_hook(lambda *_: calls.append("own"))
    mel = torch.zeros(1, 80, 3000)
    with torch.no_grad():
        own.encoder(mel)
        assert calls == ["caller", "own"]
        model_en.encoder(mel)
    assert calls == ["caller", "own", "caller"]
    assert not set(map(id, own.modules())) & set(map(id, model_en.modules()))


@pytest.mark.parametrize("name", ["words", "beams, words", "batches, words", "words, tags"])
@pytest.mark.parametrize("hooked", [False, True])
def test_cache_hooks_of_the_caller(model_en, name, hooked):
    """`install_kv_cache_hooks` is for decoding by hand, and does not concern transcription; nor is it disturbed."""
    if hooked:
        hooked_decoder(model_en)
    expected = transcribe(model_en, name)
    cache, hooks = model_en.install_kv_cache_hooks()
    assert is_unmodified(model_en.decoder) == (not hooked)
    try:
        features = model_en.embed_audio(whisper.log_mel_spectrogram(noise(30))[None])
        with torch.no_grad():
            first = model_en.decoder(torch.tensor([[50257, 50362]]), features, kv_cache=cache)
            kept = {module: value.clone() for module, value in cache.items()}
            assert_same(transcribe(model_en, name), expected)
            assert all(torch.equal(cache[module], value) for module, value in kept.items())
            second = model_en.decoder(torch.tensor([[500]]), features, kv_cache=cache)
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        both = model_en.decoder(torch.tensor([[50257, 50362, 500]]), features)
    torch.testing.assert_close(torch.cat([first, second], 1), both, atol=1e-3, rtol=1e-3)


# --- processes -----------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys, torch, numpy as np, whisper_at
import multiprocessing, threading
from concurrent.futures import ProcessPoolExecutor
audio = (np.random.default_rng(0).standard_normal(16000 * 4) / 10).astype(np.float32)

def transcribe(_=0):
    result = model.transcribe(audio, language="en", fp16=False, temperature=0.0, word_timestamps=True, sample_len=8)
    words = [word for segment in result["segments"] for word in segment["words"]]
    return result["text"], str(words), result["audio_tag"].tolist()

class Clips(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, _):
        return transcribe()

def fork():
    if os.fork() == 0:
        os.write(write, repr(transcribe()).encode())
        os._exit(0)

for compute_type, ways in WAYS:
    model = whisper_at.load_model("nano.en", "cpu", compute_type=compute_type)
    threads = torch.get_num_threads()
    expected = transcribe()
    for name, way in ways.items():
        read, write = os.pipe()
        exec(way)
        os.close(write)
        for text, words, tags in found or [eval(open(read).read())]:
            assert (text, words) == expected[:2], (name, text, words, expected)
            # in reduced precision a child rounds otherwise, as it computes by other operations
            np.testing.assert_allclose(tags, expected[2], atol=1e-3 if compute_type is None else 0.1)
        assert torch.get_num_threads() == threads
        print(name, flush=True)
    assert transcribe() == expected
"""

WAYS = {
    "fork": "fork(); found = None",
    "fork from a thread": "thread = threading.Thread(target=fork); thread.start(); thread.join(); found = None",
    "fork while others transcribe": """
other = [threading.Thread(target=transcribe) for _ in range(2)]
for thread in other: thread.start()
with multiprocessing.get_context("fork").Pool(1) as pool:
    found = pool.map(transcribe, [0])
for thread in other: thread.join()
""",
    "Pool": """
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map(transcribe, range(2))
""",
    "ProcessPoolExecutor": """
with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
    found = list(pool.map(transcribe, range(1)))
""",
    "DataLoader": """
loader = torch.utils.data.DataLoader(Clips(), num_workers=1, batch_size=None, multiprocessing_context="fork")
found = [tuple(clip) for clip in loader]
""",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_children_transcribe():
    """After the parent has, with words: threads of OpenMP do not survive a fork, PyTorch's among them."""
    ways = [(None, WAYS), *((compute_type, {"fork": WAYS["fork"]}) for compute_type in ("int8", "bfloat16"))]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}
    env.pop("NUMBA_THREADING_LAYER", None)
    command = [sys.executable, "-c", PROGRAM.replace("WAYS", repr(ways))]
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert found.stdout.splitlines() == [name for _, names in ways for name in names], found.stderr


def test_a_lock_that_another_thread_holds_is_free_in_the_child():
    """A fork waits until openai-whisper's own code has run, and its lock is free in parent and child."""
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    held, release = threading.Event(), threading.Event()

    def hold():
        with isolation.LOCK:
            held.set()
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    threading.Timer(0.2, release.set).start()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if isolation.LOCK.acquire(timeout=5) else 1)
    _, status = os.waitpid(pid, 0)
    holder.join()
    assert status == 0
    assert isolation.LOCK.acquire(timeout=5)
    isolation.LOCK.release()


def test_a_plain_whisper_in_threads(upstream_en):
    """`whisper_at.decode` takes openai-whisper's models too."""
    mel = whisper.log_mel_spectrogram(noise(30))
    options = whisper_at.DecodingOptions(language="en", fp16=False, sample_len=12)
    expected = whisper.decode(upstream_en, mel, options)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: whisper_at.decode(upstream_en, mel, options), range(8)):
            assert found.tokens == expected.tokens
