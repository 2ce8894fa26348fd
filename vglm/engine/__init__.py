"""The paged engine: it knows pages and spans, never graphs or HTTP.

core            the loop: requests in, steps, results on the requests
intake          checks a request and makes its sequences
scheduler       which sequences run in a step, and with how many tokens
block_manager   gives sequences their pages: from span_cache where it can, from block_pool where it must
span_store      spans that survive a restart: in span_files, which are made of span_segments
step            the arrays of one native call
executor        runs that call
results         takes its answers over
request         the nouns; metrics: what has been counted
"""
