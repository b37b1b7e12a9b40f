"""The pages, a module each; a module has its handlers and what they show."""
