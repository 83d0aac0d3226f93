"""Turn documents into batches: find texts, tokenise them into shards of ids, and cut rows from those."""
