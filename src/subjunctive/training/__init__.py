"""What `subjunctive.train.fit` is made of: objectives, batches by step, the loop, its journal."""
