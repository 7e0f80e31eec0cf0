"""What slots and latent actions tell of entities: slots, actions and labels of frames in, DCI and information out.

Two measures go by the name of DCI. `Probes` gives that of FLAM (arXiv 2602.16229, Appendix C.2), which looks at each
slot alone; `Importances` gives that of Eastwood and Williams (ICLR 2018), which asks what a predictor from all slots
relies on. Their numbers do not compare.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.special import entr
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import LogisticRegression, MultiTaskLasso
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flamscale.errors import DataError

_LASSO_ALPHA = 0.01  # of positions and slots at unit variance
_MAX_ITERATIONS = 5_000


@dataclass(frozen=True)
class Dci:
    """Disentanglement, completeness and informativeness, each 1 at best; NaN where a single slot or entity has none.

    Attributes:
        disentanglement: 1 where a slot tells of one entity only.
        completeness: 1 where one slot tells all there is of an entity.
        informativeness: how well entities are predicted on frames the predictors were not fitted on.
    """

    disentanglement: float
    completeness: float
    informativeness: float


@dataclass(frozen=True)
class Probes:
    """A linear probe from each of K slots to the cell of each of E entities, tried on held-out frames.

    Attributes:
        likelihood: mean probability of the true cell.
        accuracy: share of frames with the true cell as the likeliest.
    """

    likelihood: Float[np.ndarray, "K E"]
    accuracy: Float[np.ndarray, "K E"]

    def dci(self) -> Dci:
        """Returns FLAM's DCI.

        Source: Appendix C.2, arXiv 2602.16229, as far as described: entropies of normalised likelihoods, and accuracy
        of the probes of matched slots and entities. Ours where it is silent: a likelihood is a mean over frames, not a
        product, and the slots left over where K > E, which tell of nothing, do not count in disentanglement. Chance
        keeps likelihoods above 0, so that even perfect slots stay below 1.
        """
        slots, entities = match(self.accuracy)
        return Dci(
            disentanglement=float(_purity(self.likelihood, axis=1)[slots].mean()),
            completeness=float(_purity(self.likelihood, axis=0).mean()),
            informativeness=float(self.accuracy[slots, entities].sum()) / self.accuracy.shape[1],
        )


@dataclass(frozen=True)
class Importances:
    """How much a linear predictor of each of E entities' positions relies on each of K slots.

    Attributes:
        importance: sum of the sizes of the coefficients of a slot's channels.
        r2: coefficient of determination on held-out frames, 0 where it is negative.
    """

    importance: Float[np.ndarray, "K E"]
    r2: Float[np.ndarray, " E"]

    def dci(self) -> Dci:
        """Returns DCI of Eastwood and Williams, A Framework for the Quantitative Evaluation of Disentangled
        Representations (ICLR 2018), Section 2: slots weigh into disentanglement by their importance.

        Ours: codes are whole slots, and informativeness is R^2, not the error.
        """
        weights = self.importance.sum(axis=1) / max(self.importance.sum(), np.finfo(np.float64).tiny)
        return Dci(
            disentanglement=float((weights * _purity(self.importance, axis=1)).sum()),
            completeness=float(_purity(self.importance, axis=0).mean()),
            informativeness=float(self.r2.mean()),
        )


def fit_probes(
    slots: Float[np.ndarray, "F K D"],
    cells: Int[np.ndarray, "F E"],
    held_out_slots: Float[np.ndarray, "G K D"],
    held_out_cells: Int[np.ndarray, "G E"],
) -> Probes:
    """Fits multinomial logistic regressions on F frames and tries them on G others.

    Raises:
        DataError: an entity never leaves its cell.
    """
    num_slots, num_entities = slots.shape[1], cells.shape[1]
    likelihood, accuracy = np.zeros((2, num_slots, num_entities))
    for entity in range(num_entities):
        if len(np.unique(cells[:, entity])) < 2:
            raise DataError(
                f"Expected every entity in at least two cells, found entity {entity} in one alone in all "
                f"{len(cells)} frames; evaluate on more or longer episodes, in which it moves."
            )
        for slot in range(num_slots):
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MAX_ITERATIONS))
            probe.fit(slots[:, slot], cells[:, entity])
            probabilities = probe.predict_proba(held_out_slots[:, slot])
            of_truth = probe.classes_ == held_out_cells[:, entity, None]  # [G, cells]; all False for an unknown cell
            likelihood[slot, entity] = (probabilities * of_truth).sum(axis=1).mean()
            accuracy[slot, entity] = of_truth[np.arange(len(of_truth)), probabilities.argmax(axis=1)].mean()
    return Probes(likelihood, accuracy)


def fit_importances(
    slots: Float[np.ndarray, "F K D"],
    positions: Float[np.ndarray, "F E 2"],
    held_out_slots: Float[np.ndarray, "G K D"],
    held_out_positions: Float[np.ndarray, "G E 2"],
) -> Importances:
    """Fits a sparse linear predictor of every entity's x and y from all slots on F frames and tries it on G others.

    x and y share their channels (group lasso), at unit variance of positions and channels.
    """
    num_slots, width = slots.shape[1:]
    inputs = StandardScaler().fit(slots.reshape(len(slots), -1))
    x, held_out_x = (inputs.transform(of.reshape(len(of), -1)) for of in (slots, held_out_slots))
    importance, r2 = [], []
    for entity in range(positions.shape[1]):
        outputs = StandardScaler().fit(positions[:, entity])
        lasso = MultiTaskLasso(alpha=_LASSO_ALPHA, max_iter=_MAX_ITERATIONS)
        lasso.fit(x, outputs.transform(positions[:, entity]))
        channels = np.linalg.norm(lasso.coef_, axis=0)  # [K * D]
        importance.append(channels.reshape(num_slots, width).sum(axis=1))
        truth = outputs.transform(held_out_positions[:, entity])
        r2.append(max(0.0, r2_score(truth, lasso.predict(held_out_x), multioutput="variance_weighted")))
    return Importances(np.stack(importance, axis=1), np.array(r2))


def action_information(
    latents: Float[np.ndarray, "F K A"], actions: Int[np.ndarray, "F E"], seed: int = 0
) -> Float[np.ndarray, "K E"]:
    """Returns the mutual information of each slot's latent action with each entity's true one (nats).

    It is that of the most telling of the A channels, so at most that of the whole latent action, but for the
    estimator's error: compare with the same estimate for actions of other clips. Source: the nearest-neighbour
    estimator of Ross, Mutual Information between Discrete and Continuous Data Sets (PLoS ONE 2014).
    """
    num_slots, num_entities = latents.shape[1], actions.shape[1]
    channels = latents.reshape(len(latents), -1)
    found = [
        mutual_info_classif(channels, actions[:, entity], discrete_features=False, random_state=seed)
        for entity in range(num_entities)
    ]
    return np.stack(found, axis=1).reshape(num_slots, -1, num_entities).max(axis=1)


def match(scores: Float[np.ndarray, "K E"]) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """Returns slots and entities paired one to one for the largest sum of scores: P = min(K, E) (Hungarian method)."""
    slots, entities = linear_sum_assignment(scores, maximize=True)
    return slots, entities


def action_entropy(actions: Int[np.ndarray, "F E"]) -> Float[np.ndarray, " E"]:
    """Returns the entropy of each entity's true actions (nats): the most there is to know of them."""
    counts = [np.unique(column, return_counts=True)[1] / len(column) for column in actions.T]
    return np.array([entr(shares).sum() for shares in counts])


def _purity(scores: Float[np.ndarray, "K E"], axis: int) -> Float[np.ndarray, " any"]:
    """1 minus the entropy of scores normalised along an axis, over its maximum; a row of zeros has none: 0."""
    total = scores.sum(axis=axis, keepdims=True)
    count = scores.shape[axis]
    shares = np.where(total > 0, scores / np.where(total > 0, total, 1.0), 1.0 / count)
    return 1.0 - entr(shares).sum(axis=axis) / np.log(count) if count > 1 else np.full(scores.shape[1 - axis], np.nan)
