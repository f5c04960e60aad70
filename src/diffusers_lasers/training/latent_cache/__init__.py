"""Latent caches: the latents of a data set as coded bytes in parquet shards, written once and read by trainings."""

__all__ = []  # what is public of this room, `training` offers
