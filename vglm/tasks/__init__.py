"""What graphs and language models do together: prompts with graphs, grounded answers, completion, explanation."""
