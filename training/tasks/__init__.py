"""What is trained: model, subjects, batches, losses and evaluation."""
