"""Training: data to packed batches, one loop for pretraining and fine-tuning, resume to the last bit."""
