"""From a model to text: sampling, beams."""
