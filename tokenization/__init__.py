"""Text to ids and back: the word-level and the byte-level BPE tokenizer, chat templates, the tokenizer report."""
