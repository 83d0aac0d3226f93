"""Turn batches into weights: the plan, the one loop, the optimizer, checkpoints, and the verbs that use them."""
