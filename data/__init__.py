"""Documents to batches: where texts come from, how they become shards of ids, and how rows are made of those."""
