"""From documents to a corpus: read, clean, cut into passages, and ask questions of them.

`documents` says what a document is, `reading` finds them and has the reader of each kind take them apart into
blocks, `cleaning` decides which blocks go, `passages` cuts what stays, `duplicates` drops what stands twice,
and `build` does all of it, in parallel and only for files that changed.
"""
