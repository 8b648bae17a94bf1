"""Rules of `superv nccl lint`, by what they are about."""
