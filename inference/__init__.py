"""Load any model, decode, sample and stream what it writes."""
