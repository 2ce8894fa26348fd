"""Benchmarks of what the model can do; every module has `run(data, ...) -> list[Figure]`, baselines included."""
