"""Who may do what: people, tokens, sessions, proxies, limits, and the history of what was done."""
