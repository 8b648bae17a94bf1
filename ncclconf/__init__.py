"""NCCL configuration. Nothing is here yet: set NCCL variables in trainer.env."""
