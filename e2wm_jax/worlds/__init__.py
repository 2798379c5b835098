"""Where agents live: the rules, states and words of each world."""
