"""A model and the data it is tried on: a model/ folder and a data set's place in; both, once they fit, out."""

from jaxtyping import Int64, UInt8
from torch import Tensor

from flamscale.config import EvaluationConfig, FlamConfig, WorldModelConfig
from flamscale.data.actions import load_true_actions
from flamscale.data.mixture import Mixture
from flamscale.data.sampling import eval_space, read_spread
from flamscale.errors import ConfigError
from flamscale.models.huggingface import FlamForWorldModeling


def load_model_and_data(model: str, data: str, device: str) -> tuple[FlamForWorldModeling, Mixture]:
    """Loads a folder in Hugging Face form, and the manifest of a data set with frames of the size it was trained on.

    Raises:
        CheckpointError, DataError: one of them is not there, or damaged.
        ConfigError: the model needs frames of another size.
    """
    found = Mixture.load([data])
    loaded = FlamForWorldModeling.from_pretrained(model).to(device)
    size = loaded.tokenizer.config.image_size
    if (found.height, found.width) != (size, size):
        raise ConfigError(
            f"The model in {model} needs frames of {size} x {size} pixels, those in {data} are {found.width} x "
            f"{found.height}; make shards with --size {size}."
        )
    return loaded, found


def load_held_out(
    data: Mixture, split: str, config: EvaluationConfig, model: WorldModelConfig
) -> tuple[UInt8[Tensor, "M T H W 3"], Int64[Tensor, "M L E"] | None]:
    """Returns the clips that `eval_clips` returns, as long as a rollout, and true actions for a model that takes them.

    Raises:
        DataError: no such split, no sample long enough, none that can be read, or no true actions.
        ConfigError: true actions are wanted of frames that lie further apart, or they are not those of the model.
    """
    if model.action == "true" and config.frame_stride != 1:
        raise ConfigError(
            f"frame-stride must be 1 for a model of true actions, one of which leads from a frame to the next, got "
            f"{config.frame_stride}."
        )
    clip_frames = config.context_frames + config.rollout_steps
    space = eval_space(data, split, clip_frames=clip_frames, frame_stride=config.frame_stride)
    frames, clips = read_spread(data, space, config.num_clips)
    actions = load_true_actions(model, data, split)
    return frames, None if actions is None else actions.of(clips, clip_frames)


def check_has_slots(model: FlamForWorldModeling, place: str, use: str) -> None:
    """Raises ConfigError for a baseline without slots, where `use` looks at slots; `place` is where it came from."""
    config = model.flam.config
    if not isinstance(config, FlamConfig):
        raise ConfigError(f"{use} needs a model with slots, got a {config.model} one in {place}; choose another model.")
