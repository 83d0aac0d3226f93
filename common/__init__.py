"""What every room shares and that knows nothing of language models: errors, settings, files, the console."""
