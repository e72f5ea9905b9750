"""How each number is taken from a running step, in torch and nothing else."""
