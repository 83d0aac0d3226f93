"""Documents to batches: where texts come from, how they become shards of ids, how windows are cut from those."""
