"""What a model is asked: tasks of lm-evaluation-harness, and the ready ones that read a file of the user."""
