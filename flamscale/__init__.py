"""Flamscale: pretraining of factored latent action world models (FLAM) from action-free video, at scale.

Importing it is light. It teaches `transformers`, imported before or after, to load a FLAM folder:
`AutoModel.from_pretrained(path)`.
"""

from wrapt import register_post_import_hook

register_post_import_hook("flamscale.models.huggingface_config:register", "transformers.models.auto.configuration_auto")
register_post_import_hook("flamscale.models.huggingface:register", "transformers.models.auto.modeling_auto")
