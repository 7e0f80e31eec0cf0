"""Evaluation: a tokenizer, a FLAM and held-out clips in; numbers, pictures and a report out."""
