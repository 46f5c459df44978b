"""What the coordinator does: the inbox, from submissions to the global model, its history."""
