"""The board: one web application over what the bucket, the collector and luigid know.

One process (Tornado). Pages are made on the server (Jinja2); parts of them are fetched again (htmx) when a
stream of server-sent events says that what they show changed. A program gets the same pages as JSON.
"""
