"""Weights to numbers, each with a baseline beside it: language measures, text written, reports."""
