"""What is looked at as soon as the ranks of a run meet: who is there, what they run, their clocks and their network."""
