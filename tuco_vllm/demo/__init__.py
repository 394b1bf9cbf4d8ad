"""The bundled pair and prompts: `tuco demo`, and how the pair was trained."""
