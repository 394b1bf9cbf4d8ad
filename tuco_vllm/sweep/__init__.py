"""Answers to labelled questions under a grid of alphas: questions in, Parquet out.

``run.run_sweep`` is the whole; what the answers say is read from the Parquet by ``analysis.effects``.
"""
