"""The HTTP server: completions as OpenAI's API has them, the surprise of a text, and a page.

Its libraries come with the extra ``serve``; only ``limits`` can be imported without them.
"""
