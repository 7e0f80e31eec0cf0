"""DCI and information of actions on slots made by hand: clean, mixed, shuffled and empty ones."""

import math
from dataclasses import astuple

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from flamscale.errors import DataError
from flamscale.eval.factors import (
    Importances,
    Probes,
    action_entropy,
    action_information,
    fit_importances,
    fit_probes,
    match,
)

NUM_FRAMES, NUM_ENTITIES, SIDE = 600, 3, 3


def entities(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells [F, E] of a 3 x 3 room, and positions [F, E, 2]."""
    cells = np.random.default_rng(seed).integers(0, SIDE**2, (NUM_FRAMES, NUM_ENTITIES))
    return cells, np.stack([cells % SIDE, cells // SIDE], axis=-1).astype(np.float64)


def clean_slots(cells: np.ndarray, positions: np.ndarray, num_slots: int = NUM_ENTITIES, seed: int = 0) -> np.ndarray:
    """[F, K, D]: slot k tells cell and position of entity k and nothing else; slots beyond the entities are noise."""
    noise = np.random.default_rng(seed).normal(size=(len(cells), num_slots, SIDE**2 + 2))
    slots = 0.05 * noise
    slots[:, :NUM_ENTITIES] += np.concatenate([np.eye(SIDE**2)[cells], positions], axis=-1)
    return slots


def mixed(slots: np.ndarray) -> np.ndarray:
    """Every slot tells a little of all entities."""
    width = slots.shape[-1]
    turns = [np.linalg.qr(np.random.default_rng(seed).normal(size=(3 * width, width)))[0] for seed in range(3)]
    return np.stack([slots.reshape(len(slots), -1) @ turn for turn in turns], axis=1)


def shuffled(slots: np.ndarray) -> np.ndarray:
    """In every frame the slots are dealt anew."""
    order = np.random.default_rng(5).permuted(np.arange(slots.shape[1])[None].repeat(len(slots), axis=0), axis=1)
    return np.take_along_axis(slots, order[:, :, None], axis=1)


@pytest.fixture(scope="module")
def known() -> tuple[np.ndarray, np.ndarray]:
    return entities(seed=1)


@pytest.fixture(scope="module")
def held_out() -> tuple[np.ndarray, np.ndarray]:
    return entities(seed=2)


@pytest.fixture(scope="module")
def slots(known, held_out) -> tuple[np.ndarray, np.ndarray]:
    return clean_slots(*known, seed=3), clean_slots(*held_out, seed=4)


def probes_of(slots, known, held_out) -> Probes:
    return fit_probes(slots[0], known[0], slots[1], held_out[0])


def importances_of(slots, known, held_out) -> Importances:
    return fit_importances(slots[0], known[1], slots[1], held_out[1])


def test_an_entity_a_slot_is_the_best_there_is_by_both_forms(slots, known, held_out) -> None:
    probes, importances = probes_of(slots, known, held_out), importances_of(slots, known, held_out)
    assert np.diag(probes.accuracy).min() > 0.99
    assert probes.accuracy[~np.eye(3, dtype=bool)].max() < 0.25  # chance is 1/9
    assert probes.dci().informativeness > 0.99
    assert min(astuple(importances.dci())) > 0.9


def test_mixed_slots_lose_disentanglement_and_completeness_by_both_forms(slots, known, held_out) -> None:
    entangled = mixed(slots[0]), mixed(slots[1])
    for measure in (probes_of, importances_of):
        clean, worse = measure(slots, known, held_out).dci(), measure(entangled, known, held_out).dci()
        assert worse.disentanglement < clean.disentanglement - 0.3
        assert worse.completeness < clean.completeness - 0.3


def test_slots_dealt_anew_in_every_frame_tell_little(slots, known, held_out) -> None:
    dealt = shuffled(slots[0]), shuffled(slots[1])
    assert probes_of(dealt, known, held_out).dci().informativeness < 0.5
    assert importances_of(dealt, known, held_out).dci().informativeness < 0.5


def test_slots_of_a_frozen_first_frame_tell_nothing(slots, known, held_out) -> None:
    frozen = tuple(of[:1] + 0.05 * np.random.default_rng(6).normal(size=of.shape) for of in slots)
    probes, importances = probes_of(frozen, known, held_out), importances_of(frozen, known, held_out)
    assert probes.dci().informativeness < 0.2
    assert importances.dci().informativeness < 0.05


def test_a_coordinate_that_never_changes_tells_nothing_and_does_not_count(slots, known, held_out) -> None:
    frozen = tuple(of[:1] + 0.05 * np.random.default_rng(6).normal(size=of.shape) for of in slots)
    in_a_row = [(cells, positions * np.array([1.0, 0.0])) for cells, positions in (known, held_out)]
    assert importances_of(frozen, *in_a_row).dci().informativeness < 0.05
    assert importances_of(slots, *in_a_row).dci().informativeness > 0.9


def test_slots_left_over_do_not_count_in_flams_disentanglement(known, held_out) -> None:
    spare = clean_slots(*known, num_slots=5, seed=3), clean_slots(*held_out, num_slots=5, seed=4)
    of_spare, of_clean = (
        probes_of(spare, known, held_out),
        probes_of((spare[0][:, :3], spare[1][:, :3]), known, held_out),
    )
    assert of_spare.dci().disentanglement == pytest.approx(of_clean.dci().disentanglement)
    assert of_spare.dci().informativeness == of_clean.dci().informativeness


def test_flams_dci_of_likelihoods_counted_by_hand() -> None:
    likelihood = np.array([[0.9, 0.1], [0.3, 0.3]])
    dci = Probes(likelihood, np.array([[0.8, 0.2], [0.3, 0.5]])).dci()
    slot = 1 + (0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))
    columns = [1 + 0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)] * 2
    assert dci.disentanglement == pytest.approx((slot + 0.0) / 2)
    assert dci.completeness == pytest.approx(sum(columns) / 2)
    assert dci.informativeness == pytest.approx((0.8 + 0.5) / 2)


def test_dci_of_eastwood_and_williams_of_importances_counted_by_hand() -> None:
    dci = Importances(np.array([[3.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), np.array([0.5, 0.7])).dci()
    weights = np.array([3, 1, 2, 0]) / 6
    entropy = -(0.6 * math.log(0.6) + 2 * 0.2 * math.log(0.2)) / math.log(4)
    assert dci.disentanglement == pytest.approx(weights[0] + weights[1])
    assert dci.completeness == pytest.approx((1 - entropy + 1) / 2)
    assert dci.informativeness == pytest.approx(0.6)


def test_one_entity_has_no_disentanglement_and_unmatched_entities_lower_informativeness() -> None:
    assert math.isnan(Probes(np.array([[0.9], [0.1]]), np.array([[0.9], [0.1]])).dci().disentanglement)
    one_slot = Probes(np.array([[0.9, 0.1]]), np.array([[0.8, 0.1]])).dci()
    assert one_slot.informativeness == pytest.approx(0.4)


def test_an_entity_that_never_moves_is_refused(slots, known) -> None:
    still = known[0] * np.array([1, 0, 1])
    with pytest.raises(DataError, match=r"found entity 1 in one alone in all 600 frames; evaluate on more"):
        fit_probes(slots[0], still, slots[0], still)


def test_matching_takes_the_best_pairs_together() -> None:
    rows, columns = match(np.array([[0.9, 0.8], [0.85, 0.1], [0.0, 0.0]]))
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 1), (1, 0)]


def actions_and_latents(noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """True actions [F, E] of three kinds, and latent actions [F, K, A] that tell action k in channel 1 of slot k."""
    rng = np.random.default_rng(7)
    actions = rng.integers(0, 3, (NUM_FRAMES, NUM_ENTITIES))
    latents = rng.normal(size=(NUM_FRAMES, NUM_ENTITIES, 4))
    latents[:, :, 1] = actions + noise * rng.normal(size=actions.shape)
    return actions, latents


def test_clear_latent_actions_tell_all_of_the_true_ones() -> None:
    actions, latents = actions_and_latents()
    information = action_information(latents, actions)
    assert np.diag(information) == pytest.approx(action_entropy(actions), abs=0.05)
    assert information[~np.eye(3, dtype=bool)].max() < 0.1


def test_the_estimate_is_the_plug_in_one_of_discretised_latent_actions() -> None:
    actions, latents = actions_and_latents(noise=0.4)
    bins = np.digitize(latents[:, :, 1], np.linspace(-1, 3, 13))
    expected = [mutual_info_score(actions[:, slot], bins[:, slot]) for slot in range(NUM_ENTITIES)]
    assert np.diag(action_information(latents, actions)) == pytest.approx(expected, abs=0.1)


def test_actions_of_other_frames_and_collapsed_latent_actions_tell_nothing() -> None:
    actions, latents = actions_and_latents()
    assert action_information(np.roll(latents, 100, axis=0), actions).max() < 0.12
    assert action_information(np.zeros_like(latents), actions).max() < 0.12


def test_swapped_latent_actions_are_found_with_the_other_entity() -> None:
    actions, latents = actions_and_latents()
    swapped = action_information(latents[:, [1, 0, 2]], actions)
    assert swapped.argmax(axis=1).tolist() == [1, 0, 2]


def test_the_entropy_of_actions_is_that_of_their_shares() -> None:
    actions = np.array([[0, 5], [1, 5], [0, 5], [1, 5]])
    assert action_entropy(actions).tolist() == pytest.approx([math.log(2), 0.0])
