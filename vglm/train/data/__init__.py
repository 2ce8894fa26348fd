"""What the language model of a graph language model is trained on: questions about graphs, made from graphs."""
