"""One run of a training script: its flags, its folder and checkpoints, its records, and its card."""

__all__ = []  # what is public of this room, `training` offers
