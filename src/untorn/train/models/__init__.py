"""Models: a user's function or a framework's object, and the check of what it returns."""
