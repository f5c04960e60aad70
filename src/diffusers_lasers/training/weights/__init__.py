"""All weights of a model at once: cut into parts over processes, and averaged over steps."""

__all__ = []  # what is public of this room, `training` offers
