"""What mlp_xp costs, measured: ``python -m benchmarks``."""
