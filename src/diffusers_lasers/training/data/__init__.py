"""What a model is trained on: images from folders and streams, the order they come in, degraded inputs, and cached codes."""

__all__ = []  # what is public of this room, `training` offers
