"""What a dictionary needs beside a gradient: unit atoms, revival, block coordinate steps, and the fit to frozen latents."""

__all__ = []  # what is public of this room, `training` offers
