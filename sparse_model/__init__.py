"""The learned sparse-attention model. Needs torch and nothing else."""
