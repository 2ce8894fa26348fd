"""The page at `/`: questions about the stored graphs, with what was read drawn, and records that can be edited.

It needs NiceGUI (the extra `ui`), which is imported at the first visit: a server that nobody looks at pays nothing for it.
Like an endpoint it goes through `Serving`, in the same process: with admission, keys, the access log and metrics.
"""
