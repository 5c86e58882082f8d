"""What the model reads and is trained on: pictures, patches, masks, tasks, conversations, samples, batches."""
