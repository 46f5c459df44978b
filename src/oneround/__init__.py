"""One-shot federated learning on medical images: one file per hospital, one global model."""
