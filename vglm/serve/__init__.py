"""The server: HTTP in front of one engine thread.

server          listening, signals, draining: `vglm serve`
app             what answers which path, and what stands around it
serving         what every endpoint shares: model, engine thread, admission
engine_thread   the thread that owns the engine
streams         what a request has produced and nobody has taken yet
sse             a stream as server-sent events
schemas         every request and response body
completions, chat, responses, embeddings, tokens, info   the endpoints
graphs, graph_tasks   /v1/graphs, and what is asked of a graph
graph_requests  graphs in completions and chats: prompts made of them, what answers say of them
graph_service   the graph store, and the threads that work on graphs
auth, limits, admission, logs, tracing, metrics          operations
"""
