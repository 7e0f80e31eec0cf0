"""What FLAM and its baselines share: features of a clip in; latent actions, predicted features and rollouts out."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flamscale.config import WorldModelConfig
from flamscale.errors import ConfigError
from flamscale.models.actions import LatentActions
from flamscale.models.selection import SlotSelection


@dataclass(frozen=True)
class WorldModelOutput:
    """All intermediates of one forward pass; L = T - 1 steps lead from frame to frame.

    Attributes:
        predictions: predictions[p, :, t] is z^ of frame t + 1 predicted from p + 1 frames before it; for t < p, where
            the clip is too short for that depth, the deepest prediction there is.
        slots: slots of every frame; the tokens, in a model without slots.
        masks: how each token is shared among the slots (sum 1 over K); 1 in a model without slots.
        action_mean: the latent actions' posterior mean, the code, or what stands for true actions; action_mean[:, t]
            leads from frame t to t + 1.
        action_log_var: the posterior's log-variance; None unless it is Gaussian.
        actions: the sample that was used (the mean where no noise was given).
        kl: KL of each action's posterior to its prior (nats).
        action_codes: the code of each action; None unless it is quantised.
        selection: the slots that the clip keeps; None where it keeps all.
    """

    predictions: Float[Tensor, "P B L N C"]
    slots: Float[Tensor, "B T S D"]
    masks: Float[Tensor, "B T K N"]
    action_mean: Float[Tensor, "B L K A"]
    action_log_var: Float[Tensor, "B L K A"] | None
    actions: Float[Tensor, "B L K A"]
    kl: Float[Tensor, "B L K"]
    action_codes: Int[Tensor, "B L K"] | None
    selection: SlotSelection | None


@dataclass(frozen=True)
class Rollout:
    """Predicted features of S frames after the context, and the slot masks of all T = T0 + S frames."""

    features: Float[Tensor, "B S N C"]
    masks: Float[Tensor, "B T K N"]


class WorldModel(nn.Module):
    """Predicts a clip's features from inferred or true actions; a subclass says what a frame's state is.

    FLAM's state is the slots, a monolithic model's the tokens.
    """

    config: WorldModelConfig

    @abstractmethod
    def encode(self, features: Float[Tensor, "B T N C"]) -> tuple[Float[Tensor, "B T S D"], Float[Tensor, "B T K N"]]:
        """Returns the state of every frame, and the masks."""

    def select(
        self, states: Float[Tensor, "B T S D"], noise: Float[Tensor, "B S"] | None = None
    ) -> SlotSelection | None:
        """Returns which slots a clip keeps, by the state of its first frame; None in a model that keeps all."""
        return None

    @abstractmethod
    def infer(
        self,
        states: Float[Tensor, "B L S D"],
        next_states: Float[Tensor, "B L S D"],
        noise: Float[Tensor, "B L K A"] | None = None,
        kept: Float[Tensor, "B 1 K"] | None = None,
    ) -> LatentActions:
        """Returns the latent actions that lead from `states` to `next_states`; without noise, at their means.

        Slots that are not `kept` take no part, here and in `predict`.
        """

    def embed(self, actions: Int[Tensor, "B L E"]) -> LatentActions:
        """Returns what true actions are to a model that takes them; raises ConfigError in any other."""
        raise ConfigError(
            "This model infers its actions from frames and takes no true ones: leave them out, or choose one trained "
            "with --model true-actions."
        )

    @abstractmethod
    def predict(
        self,
        features: Float[Tensor, "B T N C"],
        slots: Float[Tensor, "B T S D"],
        actions: Float[Tensor, "B T K A"],
        kept: Float[Tensor, "B 1 K"] | None = None,
    ) -> Float[Tensor, "B T N C"]:
        """Returns the features of the frame after each given one, whose state is `slots`."""

    def set_static_features(self, features: Float[Tensor, "N C"]) -> None:
        """Starts what the model holds of the static scene, if anything, from the features of the median frame."""

    def forward(
        self,
        features: Float[Tensor, "B T N C"],
        noise: Float[Tensor, "B T-1 K A"] | None = None,
        predict_steps: int = 1,
        actions: Int[Tensor, "B T-1 E"] | None = None,
        slot_noise: Float[Tensor, "B K"] | None = None,
    ) -> WorldModelOutput:
        """Infers the latent actions of a clip and predicts its frames 1 to T - 1, up to `predict_steps` ahead.

        Args:
            features: true features z of T >= 2 frames.
            noise: standard normal draws of the reparameterised sample; None uses the posterior mean.
            predict_steps: prediction depth P. Depth 1 predicts every frame from the true ones before it (teacher
                forcing); depth p + 1 repeats that, for all frames at once, on the predictions of depth p.
            actions: true actions of E agents, for a model that takes them and infers none.
            slot_noise: standard logistic draws, for a model that keeps some slots; None keeps the likelier ones.
        """
        slots, masks = self.encode(features)  # Eq. 2-3
        selection = self.select(slots, slot_noise)
        kept = selection.kept if selection else None
        latent = (
            self.infer(slots[:, :-1], slots[:, 1:], noise, kept) if actions is None else self.embed(actions)
        )  # Eq. 4

        predictions = [self.predict(features[:, :-1], slots[:, :-1], latent.sample, kept)]
        for _ in range(1, predict_steps):
            fed = torch.cat([features[:, :1], predictions[-1][:, :-1]], dim=1)  # frames 0 to T - 2
            predictions.append(self.predict(fed, self.encode(fed)[0], latent.sample, kept))
        return WorldModelOutput(
            predictions=torch.stack(predictions),
            slots=slots,
            masks=selection.share(masks) if selection else masks,
            action_mean=latent.mean,
            action_log_var=latent.log_var,
            actions=latent.sample,
            kl=latent.kl,
            action_codes=latent.codes,
            selection=selection,
        )

    @torch.no_grad()
    def infer_actions(self, features: Float[Tensor, "B T N C"]) -> Float[Tensor, "B T-1 K A"]:
        """Returns the latent actions between successive frames (their posterior means); see `infer_clip`."""
        return self.infer_clip(features)[1]

    @torch.no_grad()
    def infer_clip(
        self, features: Float[Tensor, "B T N C"]
    ) -> tuple[Float[Tensor, "B T-1 S D"], Float[Tensor, "B T-1 K A"]]:
        """Returns the state of every frame but the last, and the latent actions that lead on from it (their means).

        Both are inferred from the next frame and the history_frames before it, however long the clip.
        """
        num_history = self.config.history_frames
        states, _ = self.encode(features[:, : num_history + 1])
        selection = self.select(states)
        kept = selection.kept if selection else None
        actions = self.infer(states[:, :-1], states[:, 1:], kept=kept).mean
        if features.shape[1] <= num_history + 1:
            return states[:, :-1], actions
        windows = features.unfold(1, num_history + 1, 1)[:, 1:].movedim(-1, 2)  # [B, T-1-history, history+1, N, C]
        in_windows, _ = self.encode(windows.flatten(0, 1))
        of_windows = None if kept is None else kept.repeat_interleave(windows.shape[1], dim=0)
        later_actions = self.infer(in_windows[:, -2:-1], in_windows[:, -1:], kept=of_windows).mean  # [B x windows, ...]
        later_states = in_windows[:, -2].unflatten(0, windows.shape[:2])
        return (
            torch.cat([states[:, :-1], later_states], dim=1),
            torch.cat([actions, later_actions.squeeze(1).unflatten(0, windows.shape[:2])], dim=1),
        )

    @torch.no_grad()
    def rollout(
        self,
        context: Float[Tensor, "B T0 N C"],
        actions: Float[Tensor, "B L K A"],
        quantize: Callable[[Tensor], Tensor],
    ) -> Rollout:
        """Predicts S frames autoregressively after the context (Section 4.3), each from the history_frames before it.

        Args:
            context: true features of T0 >= 1 frames.
            actions: actions[:, t] leads from frame t to t + 1; of L = T0 + S - 1, the first T0 - 1 lie in the context.
            quantize: maps predicted features to the tokenizer's nearest codebook entries before they are fed back.
        """
        num_context, num_frames = context.shape[1], actions.shape[1] + 1
        features, masks = context, []
        for frame in range(1, num_frames + 1):
            past = slice(max(frame - self.config.history_frames, 0), frame)
            slots, past_masks = self.encode(features[:, past])
            if frame == 1:  # the first frame decides for the whole clip
                selection = self.select(slots)
                kept = selection.kept if selection else None
            masks.append((selection.share(past_masks) if selection else past_masks)[:, -1:])
            if num_context <= frame < num_frames:
                predicted = self.predict(features[:, past], slots, actions[:, past], kept)[:, -1:]
                features = torch.cat([features, quantize(predicted)], dim=1)
        return Rollout(features[:, num_context:], torch.cat(masks, dim=1))
