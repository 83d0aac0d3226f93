"""Turn weights into numbers, each beside a baseline: scores of a text, of answers and of labels, tables and pages."""
