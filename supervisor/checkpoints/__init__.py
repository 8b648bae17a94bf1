"""Checkpoints on storage: formats and verification, questions to storage, retention."""
