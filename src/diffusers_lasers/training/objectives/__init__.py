"""What is minimised: the reconstruction loss, the adversarial terms, and the loss of diffusion on indices."""

__all__ = []  # what is public of this room, `training` offers
