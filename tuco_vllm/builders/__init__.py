"""Prompt sets of the paper's experiments, from files that users have."""
