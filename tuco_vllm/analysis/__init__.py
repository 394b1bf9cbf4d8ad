"""Parquet -> tables and figures. Needs no model: imports neither torch nor vllm."""
