"""What a hospital does: train, write the submission, evaluate the global model."""
