"""FLAM in Hugging Face form: trained tokenizer and FLAM in; a folder that `AutoModel.from_pretrained` loads, out.

The folder holds config.json, model.safetensors (tokenizer included) and README.md, the model card. Weights are read
from safetensors alone, never unpickled.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int, Int64, UInt8
from safetensors import SafetensorError
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from flamscale.errors import CheckpointError, ConfigError
from flamscale.models.build import build_world_model
from flamscale.models.huggingface_config import FlamHFConfig
from flamscale.models.model_card import model_card
from flamscale.models.tokenizer import Tokenizer, to_images
from flamscale.models.world_model import WorldModel, WorldModelOutput


@dataclass(frozen=True)
class PredictedVideo:
    """S predicted frames, the L = T - 1 actions used, and the slot masks of all T = T0 + S frames."""

    frames: UInt8[Tensor, "B S H W 3"]
    actions: Float[Tensor, "B L K A"] | Int[Tensor, "B L E"]
    masks: Float[Tensor, "B T K N"]


class FlamForWorldModeling(PreTrainedModel):
    """Tokenizer and FLAM, or a baseline in its place, as one model from uint8 frames to uint8 frames."""

    config_class = FlamHFConfig
    main_input_name = "frames"

    def __init__(
        self, config: FlamHFConfig, tokenizer: Tokenizer | None = None, flam: WorldModel | None = None
    ) -> None:
        super().__init__(config)
        tokenizer_config, flam_config = config.build_configs()
        self.tokenizer = tokenizer or Tokenizer(tokenizer_config)
        self.flam = flam or build_world_model(flam_config, tokenizer_config)
        self.post_init()

    @classmethod
    def from_modules(cls, tokenizer: Tokenizer, flam: WorldModel) -> "FlamForWorldModeling":
        """Returns the model that holds these very modules."""
        flam_config = dataclasses.replace(flam.config, kernels="auto", attention="sdpa")  # what runs everywhere
        sizes = {"tokenizer": dataclasses.asdict(tokenizer.config), "flam": dataclasses.asdict(flam_config)}
        return cls(FlamHFConfig(**sizes), tokenizer, flam)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> Any:
        """Loads a folder that `save_pretrained` wrote; arguments as in transformers.

        Raises:
            CheckpointError: the folder or its safetensors are missing, or the weights are of another model.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model: FlamForWorldModeling
        info: dict[str, Any]
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # what does not fit is told below, in one sentence rather than a table
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"Expected config.json and model.safetensors in {pretrained_model_name_or_path}, could not load them "
                f"({_first_sentence(error)}); pass the model/ folder of a finished run."
            ) from error
        finally:
            logging.set_verbosity(verbosity)
        unfit = {kind: sorted(map(str, names)) for kind, names in info.items() if names and kind.endswith("_keys")}
        if unfit:
            kind, names = next(iter(unfit.items()))
            raise CheckpointError(
                f"The weights in {pretrained_model_name_or_path} are not those of its config.json: {len(names)} "
                f"{kind.replace('_keys', '')}, the first {names[0]}; export the model again."
            )
        return (model, info) if wants_info else model

    @classmethod
    def get_init_context(cls, *args: Any, **kwargs: Any) -> list[Any]:
        """Builds the modules on a real device, not on `meta`: their constructors compute."""
        contexts = super().get_init_context(*args, **kwargs)
        return [context for context in contexts if not isinstance(context, torch.device)]

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leaves the modules as their constructors made them: weights that a file lacks are an error here."""

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], *, result: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Writes config.json, model.safetensors and the model card, with the numbers of an evaluation if given."""
        super().save_pretrained(save_directory, **kwargs)
        write_model_card(Path(save_directory), self, result)

    def forward(
        self, frames: UInt8[Tensor, "B T H W 3"], actions: Int[Tensor, "B T-1 E"] | None = None
    ) -> WorldModelOutput:
        """Returns slots, masks, latent actions and one-step predictions of a clip, actions at their posterior mean.

        A model of true actions needs those of E agents; raises ConfigError where they are missing or do not fit.
        """
        return self.flam(self.encode(frames), actions=None if actions is None else self._check_true(actions))

    def encode(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B T N C"]:
        """Returns the tokenizer's quantised features of frames."""
        images = to_images(frames.to(self.device)).to(self.dtype)
        return self.tokenizer.lookup(self.tokenizer.encode(images)).unflatten(0, frames.shape[:2])

    def decode(self, features: Float[Tensor, "B T N C"]) -> UInt8[Tensor, "B T H W 3"]:
        """Returns the frames of features."""
        images = self.tokenizer.decode(features.flatten(0, 1))
        return images.float().mul(255.0).round().to(torch.uint8).permute(0, 2, 3, 1).unflatten(0, features.shape[:2])

    def infer_actions(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B T-1 K A"]:
        """Returns the latent actions between successive frames (posterior means)."""
        return self.flam.infer_actions(self.encode(frames))

    def rollout(
        self,
        frames: UInt8[Tensor, "B T H W 3"],
        actions: Float[Tensor, "B L K A"] | Int[Tensor, "B L E"] | None = None,
        *,
        steps: int,
    ) -> PredictedVideo:
        """Predicts `steps` frames, each fed back for the next (Section 4.3, arXiv 2602.16229).

        Args:
            frames: the context, T0 frames, where actions are given; else the context and the `steps` true frames after
                it, from which the actions are inferred and which the prediction does not see.
            actions: L = T0 + steps - 1 latent actions; actions[:, t] leads from frame t to t + 1. A model of true
                actions needs those of E agents.
            steps: frames S to predict.

        Raises:
            ConfigError: frames and actions are not as many as `steps` needs, or the model takes other actions.
        """
        num_context = frames.shape[1] - steps if actions is None else frames.shape[1]
        if steps < 1 or num_context < 1:
            raise ConfigError(
                f"rollout needs steps from 1 up and, without actions, more frames than steps, got {steps} steps and "
                f"{frames.shape[1]} frames."
            )
        features = self.encode(frames)
        if actions is None:
            actions = self.flam.infer_actions(features)
        if actions.shape[1] != num_context + steps - 1:
            raise ConfigError(
                f"rollout of {steps} steps from {num_context} frames needs {num_context + steps - 1} actions, "
                f"got {actions.shape[1]}."
            )
        takes_latent = self.flam.config.action != "true" and actions.is_floating_point()
        latent = actions if takes_latent else self.flam.embed(self._check_true(actions)).sample
        rollout = self.flam.rollout(features[:, :num_context], latent, self.tokenizer.quantize)
        return PredictedVideo(self.decode(rollout.features), actions, rollout.masks)

    def _check_true(self, actions: Tensor) -> Int64[Tensor, "B L E"]:
        """Returns true actions on the model's device; raises ConfigError unless it can take them."""
        config = self.flam.config
        if config.action == "true":
            if actions.ndim != 3 or actions.is_floating_point():
                raise ConfigError(
                    f"Expected true actions, integers [clips, frames - 1, agents], got {actions.dtype} "
                    f"{list(actions.shape)}; pass them as the labels have them."
                )
            num_agents, values = actions.shape[2], actions.unique().tolist() or [0]
            if num_agents > config.num_agents or not 0 <= values[0] <= values[-1] < config.num_agent_actions:
                raise ConfigError(
                    f"Expected true actions of up to {config.num_agents} agents from 0 to "
                    f"{config.num_agent_actions - 1}, got those of {num_agents} from {values[0]} to {values[-1]}; pass "
                    "them as the labels have them."
                )
        return actions.to(self.device, torch.int64)


def write_model_card(
    folder: Path, model: FlamForWorldModeling, result: dict[str, Any] | None = None, *, origin: str = ""
) -> None:
    """Writes README.md, with the numbers of an evaluation and a section on the model's origin if given."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    partial = folder / "README.md.partial"
    partial.write_text(model_card(model.tokenizer.config, model.flam.config, num_parameters, result, origin))
    os.replace(partial, folder / "README.md")


def register(modeling_auto: ModuleType) -> None:
    """Makes AutoModel know this model; called by the import hook in `flamscale/__init__.py`."""
    modeling_auto.AutoModel.register(FlamHFConfig, FlamForWorldModeling, exist_ok=True)


def _first_sentence(error: Exception) -> str:
    return str(error).split("\n")[0].split(". ")[0].rstrip(".")
