"""The page: `hfmega app`, for people who would rather look than read. An extra; nothing but the command imports it.

It runs the command line as a child and reads what runs leave on disk: it decides nothing about a merge by itself.
`command`, `runs`, `look`, `answers`, `charts`, `words`, `space` know no gradio; `page` puts the four tabs together.
"""
