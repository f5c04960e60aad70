"""What a dictionary needs besides its gradient: unit atoms, revival, block coordinate steps, fits to latents."""

__all__ = []  # what is public of this room, `training` offers
