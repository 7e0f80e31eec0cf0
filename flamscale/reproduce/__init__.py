"""The paper's tables made anew: a table's name and a budget in; runs, and their numbers beside the paper's, out."""
