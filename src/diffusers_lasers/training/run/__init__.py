"""One run of a training script: its command line, its folder and checkpoints, its records, and what is said of it in the end."""

__all__ = []  # what is public of this room, `training` offers
