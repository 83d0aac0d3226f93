"""Turn text into ids and back: words, byte-level BPE, chat templates, and the report on a tokenizer."""
