"""Benchmarks: plain functions that measure and return rows; they need torch alone (and Triton on a GPU)."""
