"""Dictionaries beside their gradient: unit atoms, revival, block coordinate steps, and a fit to frozen latents."""

__all__ = []  # what is public of this room, `training` offers
