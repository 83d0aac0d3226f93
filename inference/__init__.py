"""Load any model (`loading`), decode (`decoding`), sample and stream (`generation`), follow a text (`writing`)."""
