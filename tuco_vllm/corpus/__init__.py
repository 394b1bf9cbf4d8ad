"""A scoring job: inputs are cut into units, and workers read, score and write one each, whatever is killed."""
