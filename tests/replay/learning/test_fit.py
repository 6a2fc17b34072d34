"""A fit learns a planted signal, repeats for its seed, and resumes from its state."""

from __future__ import annotations

import math
import resource
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning import DAY_BARS, HORIZONS, panel, split, tiny

from tracepaper.replay.learning import fit as fits
from tracepaper.replay.learning import fit as states
from tracepaper.replay.learning.fit import (
    Fit,
    FitOptions,
    HeadLosses,
    Progress,
    heads_fit,
    learning_rate,
)
from tracepaper.replay.learning.losses import head_scores
from tracepaper.replay.learning.samples import Samples, samples_in
from tracepaper.replay.learning.splits import Part
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid, InvariantBroken
from tracepaper.strategies.networks.architecture import Network, kind_of
from tracepaper.strategies.networks.checks import GradientFlow, gradient_warning
from tracepaper.strategies.networks.flash import FlashNetwork
from tracepaper.strategies.networks.informer import InformerNetwork

SPLIT = split(3, 4, 5)
PANELS = [panel(4 * DAY_BARS)]
TRAINING = samples_in(PANELS, HORIZONS, SPLIT, Part.TRAIN)
VALIDATION = samples_in(PANELS, HORIZONS, SPLIT, Part.VALIDATION)
QUICK = FitOptions(
    steps=8,
    batch=2,
    length=256,
    learning_rate=3e-3,
    validate_every=4,
    average=0.5,
    weight_decay=0.0,
)


def options(**changed: Any) -> FitOptions:
    return replace(QUICK, **changed)


def network(kind: str, dropout: float = 0.1) -> Network:
    if kind == "flash":
        return FlashNetwork(replace(tiny(), dropout=dropout))
    maker = kind_of(kind)
    section = {"dim": 8, "layers": 2, "window": 24, "horizons": HORIZONS, "dropout": dropout}
    model: Network = maker.make(maker.read(section))
    return model


def fit(
    folder: Path,
    chosen: FitOptions = QUICK,
    training: list[Samples] = TRAINING,
    *,
    kind: str = "flash",
    dropout: float = 0.1,
) -> Fit:
    torch.manual_seed(chosen.seed)
    torch.set_num_threads(1)
    return heads_fit(
        network(kind, dropout), training, VALIDATION, chosen, folder=folder, about={"kind": kind}
    )


def ignore(_: Progress) -> None:
    """Ignore the progress."""


def test_a_network_learns_what_is_there_to_learn(tmp_path: Path) -> None:
    fitted = fit(tmp_path, options(steps=80, validate_every=40, average=0.9))
    fitted.run(ignore)
    assert isinstance(fitted.objective, HeadLosses)
    scores = fitted.objective.best
    assert (scores[2] > 0).all()  # volatility breathes
    assert scores[0, 0] > 0  # returns lean back
    assert fitted.progress.best_score > 0.1
    assert set(fitted.best) == set(FlashNetwork(tiny()).state_dict())


def test_a_seed_repeats_in_every_bit_and_another_does_not(tmp_path: Path) -> None:
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fitted = fit(tmp_path / name, options(seed=seed))
        fitted.run(ignore)
        runs.append(fitted.best["embed.weight"])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


class CutOffError(Exception):
    pass


@pytest.mark.parametrize("kind", ["flash", "informer", "lstm"])
def test_a_fit_that_was_cut_off_ends_as_if_it_had_not_been(tmp_path: Path, kind: str) -> None:
    """Public reports: fairchem#146, allennlp#5220, transformers#1987, sparseml#702, mimikit#30."""
    whole = fit(tmp_path / "whole", kind=kind)
    whole.run(ignore)

    def cut(progress: Progress) -> None:
        if progress.step == 5:
            raise CutOffError

    with pytest.raises(CutOffError):
        fit(tmp_path / "cut", kind=kind).run(cut)
    rest = fit(tmp_path / "cut", kind=kind)
    assert rest.resume()
    assert rest.progress.step == 4  # the last validation
    rest.run(ignore)
    assert rest.progress.score == whole.progress.score
    assert [*rest.progress.gradients.items()] == [*whole.progress.gradients.items()]
    for name, tensor in whole.best.items():
        assert torch.equal(rest.best[name], tensor)


def test_a_full_disk_leaves_the_state_before_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / states.STATE_NAME
    states.write_state(path, {"a": torch.ones(9), "step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))  # as on a disk with so much room
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            states.write_state(path, {"a": torch.zeros(9), "step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.filename == str(path)
    assert [path.name for path in tmp_path.iterdir()] == [states.STATE_NAME]
    state = states.read_state(path)
    assert state["step"] == 1
    assert torch.equal(state["a"], torch.ones(9))


def test_nothing_to_take_up_is_no_error(tmp_path: Path) -> None:
    assert not fit(tmp_path).resume()


def test_a_state_of_other_options_is_refused(tmp_path: Path) -> None:
    fit(tmp_path).save()
    with pytest.raises(CheckpointMismatch, match="other options"):
        fit(tmp_path, options(learning_rate=1e-4)).resume()


@pytest.mark.parametrize("at", [0, 100, -9])
def test_a_state_that_is_no_whole_state_is_refused(tmp_path: Path, at: int) -> None:
    path = tmp_path / states.STATE_NAME
    path.write_bytes(b"half")
    with pytest.raises(CheckpointMismatch, match="delete it"):
        fit(tmp_path).resume()
    fit(tmp_path).save()
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointMismatch, match="delete it"):
        fit(tmp_path).resume()
    torch.save({"options": {}}, path)
    with pytest.raises(CheckpointMismatch, match="delete it"):
        fit(tmp_path).resume()


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    fit(tmp_path).save()
    with pytest.raises(CheckpointMismatch, match="written with other kind"):
        fit(tmp_path, kind="lstm").resume()


def test_heads_that_no_longer_improve_end_the_fit(tmp_path: Path) -> None:
    fitted = fit(tmp_path, options(steps=400, validate_every=1, patience=1, learning_rate=1e-12))
    fitted.run(ignore)
    assert fitted.progress.step < 400


def test_a_loss_that_is_not_finite_ends_the_fit(tmp_path: Path) -> None:
    fitted = fit(tmp_path, options(learning_rate=1e30))
    with pytest.raises(InvariantBroken, match="step 2, before the first validation"):
        fitted.run(ignore)


def test_the_best_weights_outlive_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    fitted = fit(tmp_path)
    history: list[Progress] = []

    def spoil(progress: Progress) -> None:
        history.append(replace(progress))
        if progress.step == 5:
            with torch.no_grad():
                next(fitted.network.parameters()).fill_(math.nan)  # as overflow would

    fitted.run(spoil)
    assert fitted.progress.step == 5
    assert fitted.progress.stopped == (
        "The training loss or its gradient, first in embed, was not finite (nan) at step 6; kept "
        "are the weights of step 4."
    )
    assert history[-1].stopped
    assert all(bool(torch.isfinite(tensor).all()) for tensor in fitted.best.values())
    assert fit(tmp_path).resume()  # what was saved before is whole


@pytest.mark.parametrize("kind", ["flash", "informer", "lstm"])
def test_products_in_bfloat16_leave_the_weights_float32(tmp_path: Path, kind: str) -> None:
    plain, half = (
        fit(tmp_path / precision, options(steps=2, precision=precision), kind=kind)
        for precision in ("float32", "bfloat16")
    )
    for fitted in (plain, half):
        fitted.run(ignore)
    assert all(tensor.dtype is torch.float32 for tensor in half.best.values())
    assert half.progress.training_loss != plain.progress.training_loss
    assert half.progress.training_loss == pytest.approx(plain.progress.training_loss, rel=0.05)


def test_averaging_the_weights_leaves_what_is_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[torch.nn.Module] = []

    def observed(module: Any, *rest: Any) -> Any:
        judged.append(module)
        return head_scores(module, *rest)

    monkeypatch.setattr(fits, "head_scores", observed)
    fit(tmp_path, options(average=0.9), kind="informer").run(ignore)
    # The keys that each query samples are whole numbers: an average would truncate them.
    expected = dict(network("informer").named_buffers())
    assert any(not tensor.is_floating_point() for tensor in expected.values())
    for name, tensor in judged[-1].named_buffers():
        assert torch.equal(tensor, expected[name]), name


def test_the_rate_rises_then_falls_to_a_hundredth() -> None:
    chosen = options(steps=100, warm_up=0.1, learning_rate=1.0)
    rates = [learning_rate(step, chosen) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.01)


def test_accumulated_batches_make_one_step_of_their_mean() -> None:
    def gradient(accumulate: int, *at: int) -> torch.Tensor:
        torch.manual_seed(0)
        chosen = options(accumulate=accumulate)
        learnt = HeadLosses(network("flash", 0.0), TRAINING, VALIDATION, chosen)
        batches = list(islice(learnt.batches(0), 2))
        for place in at:
            learnt.gradient(batches[place])
        gradients = (p.grad for p in learnt.network.parameters())
        return torch.cat([of.flatten() for of in gradients if of is not None])

    torch.testing.assert_close(gradient(2, 0, 1), (gradient(1, 0) + gradient(1, 1)) / 2)


def test_a_batch_learnt_from_in_pieces_has_the_gradient_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options(steps=1, windows=16, clip=1e9)
    results = []
    for rows in (None, 5 * 24):  # windows of 24 rows: pieces of 5, 5, 5 and 1
        monkeypatch.setattr(InformerNetwork, "rows_a_pass", rows)
        fitted = fit(tmp_path / str(rows), chosen, kind="informer", dropout=0.0)
        fitted.run(ignore)
        # After one step a first moment is a tenth of the gradient.
        state = states.read_state(tmp_path / str(rows) / states.STATE_NAME)
        moments = [of["exp_avg"] for of in state["optimiser"]["state"].values()]
        results.append((fitted.progress.training_loss, moments))
    (whole, ours), (pieced, theirs) = results
    assert pieced == pytest.approx(whole, rel=1e-6)
    assert len(ours) > 20
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-7)


def test_a_weight_of_entropy_is_learnt_by_and_repeats(tmp_path: Path) -> None:
    weighted = options(entropy_weight=0.5)
    losses, kept = [], []
    for folder, chosen in ((tmp_path / "a", weighted), (tmp_path / "b", weighted)):
        folder.mkdir()
        fitted = fit(folder, chosen)
        fitted.run(ignore)
        losses.append(fitted.progress.training_loss)
        kept.append(fitted.best["blocks.0.project_in.weight"])
    plain = fit(tmp_path, QUICK)
    plain.run(ignore)
    assert losses[0] == losses[1]
    assert torch.equal(*kept)
    assert not torch.equal(kept[0], plain.best["blocks.0.project_in.weight"])
    with pytest.raises(ConfigInvalid, match="entropy_weight is for"):
        fit(tmp_path, weighted, kind="lstm")


def test_the_gradients_of_each_part_are_kept_at_each_validation(tmp_path: Path) -> None:
    fitted = fit(tmp_path / "a", options(steps=3, validate_every=1, average=0.0), dropout=0.0)
    fitted.run(ignore)
    norms = fitted.progress.gradients
    assert list(norms) == ["embed", "blocks.0", "blocks.1", "norm", "heads.project"]
    assert all(len(each) == 3 for each in norms.values())
    # Of the first step, by hand: the same batch, the same weights, no optimiser.
    other = fit(tmp_path / "b", options(steps=3, validate_every=1), dropout=0.0)
    objective = HeadLosses(network_of(other), TRAINING, VALIDATION, QUICK)
    objective.network.train()
    objective.gradient(next(objective.batches(0)))
    for part, each in norms.items():
        grads = [
            p.grad for n, p in objective.network.named_parameters() if n.startswith(f"{part}.")
        ]
        flat = np.concatenate([tensor.numpy().ravel() for tensor in grads if tensor is not None])
        assert each[0][0] == pytest.approx(math.sqrt(float(np.square(flat, dtype=float).sum())))
    # Of the last, the weights that were left.
    left = fitted.network.state_dict().items()
    weights = [t.numpy().ravel() for n, t in left if n.startswith("blocks.1.")]
    assert norms["blocks.1"][2][1] == pytest.approx(float(np.linalg.norm(np.concatenate(weights))))
    rows = fitted.progress.gradients_section()["parts"]
    assert isinstance(rows, list)
    first = [gradient for gradient, _ in norms["embed"]]
    assert rows[0]["part"] == "embed"
    assert rows[0]["median"] == pytest.approx(sorted(first)[1], rel=1e-3)
    assert (rows[0]["first"], rows[0]["last"]) == pytest.approx((first[0], first[2]), rel=1e-3)
    assert rows[0]["relative"] == pytest.approx(
        float(np.median([gradient / weight for gradient, weight in norms["embed"]])), rel=1e-3
    )
    assert fitted.progress.gradient_warning == ""


def network_of(fitted: Fit) -> Network:
    assert isinstance(fitted.network, Network)
    return fitted.network


def test_measuring_gradients_moves_no_bit_and_draws_nothing() -> None:
    torch.manual_seed(3)
    model = network("flash")
    outputs = model(torch.randn(1, 40, model.config.features), torch.arange(40))
    outputs.mean.square().sum().backward()
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state, weights = torch.get_rng_state(), [p.detach().clone() for p in model.parameters()]
    flow = GradientFlow(model)
    flow.add()
    flow.medians()
    assert torch.equal(torch.get_rng_state(), state)
    for parameter, weight, kept in zip(model.parameters(), weights, before, strict=True):
        assert torch.equal(parameter, weight)
        assert (parameter.grad is None) is (kept is None)
        assert parameter.grad is None or kept is None or torch.equal(parameter.grad, kept)


def test_a_layer_that_next_to_no_gradient_reaches_is_named_while_fitting(tmp_path: Path) -> None:
    fitted = fit(tmp_path, options(steps=2, validate_every=1, learning_rate=1e-9), dropout=0.0)
    with torch.no_grad():
        for name, parameter in fitted.network.named_parameters():
            if name == "blocks.1.project_out.weight":
                parameter.mul_(1e9)
    warned: list[str] = []
    fitted.run(lambda progress: warned.append(progress.gradient_warning))
    assert len(warned) == 2
    assert warned[0].startswith("The gradient vanishes in ")
    assert fitted.progress.gradients_section()["warning"]


def test_the_thresholds_of_vanishing_and_exploding_gradients() -> None:
    def warning(embed: float, block: float, head: float = 1.0) -> str:
        return gradient_warning(
            {"embed": [[embed, 1.0]], "blocks.0": [[2 * block, 2.0]], "heads.project": [[head, 1]]}
        )

    assert warning(1.01e-4, 1.0) == warning(1.0, 99.0) == warning(1.0, 1.0, 0.0) == ""
    assert warning(0.99e-4, 1.0) == (
        "The gradient vanishes in embed: relative to the weights it is 9.9e-05 of that in "
        "blocks.0; use fewer layers."
    )
    assert "explodes in blocks.0: its norm is 101 times" in warning(1.0, 101.0)
    assert gradient_warning({"recurrence": [[1e9, 1.0]]}) == ""
