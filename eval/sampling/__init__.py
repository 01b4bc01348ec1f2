"""Samplers side by side: solvers, steps, guidance and memories on one model with exact truth."""
