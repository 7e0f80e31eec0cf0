"""The models, in the order of the flow: tokenizer -> factorizer -> IDM -> FDM -> aggregator, composed in flam."""
