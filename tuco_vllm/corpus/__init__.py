"""A scoring job: read rows -> tokenise -> score -> commit Parquet, whatever is killed on the way."""
