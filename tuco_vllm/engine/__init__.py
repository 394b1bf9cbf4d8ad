"""The executor: the only folder that imports vLLM, and ``compat`` the only file with its private parts."""
