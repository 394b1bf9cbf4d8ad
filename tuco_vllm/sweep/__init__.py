"""What α does to answers: ``tuco sweep``."""
