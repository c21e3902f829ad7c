"""Figure functions of the lessons, a module a topic: each is pure and returns a figure and its key numbers."""
