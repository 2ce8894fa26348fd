"""Readers and writers of graph formats, one file each; `files` finds the right one for a path."""
