"""All weights of a model at once: sharded over processes, averaged over steps, and clipped."""

__all__ = []  # what is public of this room, `training` offers
