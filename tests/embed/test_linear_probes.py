"""Linear probes: the scaler, probes fitted together, one against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import preprocessing

from whisper_at.embed.probes import ProbeSettings, SplitArrays, StandardScaler, fit_probes, score

QUICK = ProbeSettings(lr=0.01, epochs=12, patience=4, batch=16)


def test_f5_every_batch_counts():
    """F5: the statistics of batches are those of all rows; the reference forgot its first batch."""
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(5, 1, (7, 3)), random.normal(-2, 4, (30, 3)), random.normal(0, 1, (1, 3))])
    scaler = StandardScaler()
    for part in np.split(values, [7, 20, 37]):
        scaler.partial_fit(part)
    np.testing.assert_allclose(scaler.mean, values.mean(0))
    np.testing.assert_allclose(scaler.std, values.std(0))
    assert scaler.count == 38
    values[:, 1] = 3.0
    scaled = StandardScaler().partial_fit(values).transform(values)
    np.testing.assert_allclose(scaled, preprocessing.StandardScaler().fit_transform(values), atol=1e-6)


def make_problem(widths, classes=3, n=(40, 20, 30), seed=0):
    """Representations of these widths, in which the classes are well separated, and targets."""
    random = np.random.default_rng(seed)
    labels = [random.integers(0, classes, size) for size in n]
    means = [random.normal(0, 1, (classes, width)) for width in widths]
    values = [
        [mean[of].astype(np.float32) * 3 + random.normal(0, 1, (len(of), len(mean[0]))) for of in labels]
        for mean in means
    ]
    representations = [SplitArrays(*(x.astype(np.float32) for x in splits)) for splits in values]
    return representations, SplitArrays(*(np.eye(classes, dtype=np.float32)[of] for of in labels))


@pytest.mark.parametrize("multi_label", [False, True])
def test_probes_fitted_together_are_those_fitted_alone(multi_label):
    representations, targets = make_problem([8, 4, 8, 4, 8])
    if multi_label:
        targets = SplitArrays(
            *(np.maximum(t, np.roll(t, 1, axis=1) * (np.arange(len(t)) % 2)[:, None]) for t in targets)
        )
    together = fit_probes(representations, targets, QUICK, 42, multi_label)
    for one, found in zip(representations, together):
        alone = fit_probes([one], targets, QUICK, 42, multi_label)[0]
        assert alone.epoch == found.epoch
        assert alone.valid == found.valid
        np.testing.assert_allclose(found.test_logits, alone.test_logits, atol=1e-5)
    assert score(together[0].test_logits, targets.test, multi_label) > 0.9


def test_a_probe_is_one_linear_layer_fitted_by_adam():
    """Against a plain loop: nn.Linear's range, CE / C, L2 of 1e-8, last of equally good epochs, patience."""
    representations, targets = make_problem([6], classes=4, n=(33, 12, 9))
    settings = ProbeSettings(lr=0.02, epochs=40, patience=5, batch=10)
    found = fit_probes(representations, targets, settings, 7)[0]

    scaler = preprocessing.StandardScaler().fit(representations[0].train)
    train, valid, test = (torch.tensor(scaler.transform(x), dtype=torch.float32) for x in representations[0])
    draw = torch.Generator().manual_seed(7)
    weight, bias = ((torch.rand(n, 4, generator=draw) * 2 - 1) / 6**0.5 for n in (6, 1))
    weight.requires_grad_(), bias.requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=0.02, weight_decay=1e-8)
    truth = torch.from_numpy(targets.train).argmax(1)
    best, waited = (-1.0, 0, None), 0
    for epoch in range(1, 41):
        for chosen in torch.randperm(33, generator=draw).split(10):
            loss = torch.nn.functional.cross_entropy(train[chosen] @ weight + bias, truth[chosen]) / 4
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = score((valid @ weight + bias).numpy(), targets.valid, False)
            waited += 1
            if accuracy >= best[0]:
                best, waited = (accuracy, epoch, (test @ weight + bias).numpy()), 0
        if waited >= 5:
            break
    assert (found.valid, found.epoch) == best[:2]
    np.testing.assert_allclose(found.test_logits, best[2], atol=1e-4)


def test_a_probe_that_ends_while_it_still_improves_is_not_finished():
    representations, targets = make_problem([6], classes=4, n=(33, 12, 9))
    few, more = (
        fit_probes(representations, targets, ProbeSettings(lr=1e-3, epochs=epochs, batch=10, patience=20), 7)[0]
        for epochs in (20, 80)
    )
    assert (few.finished, more.finished) == (False, True)
    assert more.epoch < 80
    assert more.valid > few.valid
    # all right in validation cannot rise any more, though the last of equal epochs counts
    quick = fit_probes(representations, targets, ProbeSettings(epochs=60, lr=0.05, batch=10, patience=20), 7)[0]
    assert (quick.valid, quick.epoch, quick.finished) == (1.0, 60, True)


def test_f6_the_scaler_is_fitted_on_training_only():
    """F6: the validation split does not change the scaler."""
    representations, targets = make_problem([5])
    first = fit_probes(representations, targets, QUICK, 1)[0]
    moved = representations[0]._replace(valid=representations[0].valid[:1].repeat(20, 0) * 1e4)
    settings = ProbeSettings(lr=0.01, epochs=1, batch=16)
    one = fit_probes(representations, targets, settings, 1)[0]
    other = fit_probes([moved], targets, settings, 1)[0]
    np.testing.assert_array_equal(one.test_logits, other.test_logits)
    assert first.epoch > 1
    with pytest.raises(ValueError, match="no clips for valid"):
        fit_probes(representations, targets._replace(valid=targets.valid[:0]), QUICK, 1)
