"""What a hospital does: train, make the submission, evaluate the global model."""
