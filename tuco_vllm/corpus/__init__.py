"""A scoring job: inputs are cut into units; workers read, score and write one each, whatever is killed."""
