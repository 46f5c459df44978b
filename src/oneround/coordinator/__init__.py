"""What the coordinator does: collect submissions, make the global model, keep its history."""
