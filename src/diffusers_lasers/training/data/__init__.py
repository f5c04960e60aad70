"""What a model is trained on: images from folders and streams, their order, degraded inputs, and cached codes."""

__all__ = []  # what is public of this room, `training` offers
