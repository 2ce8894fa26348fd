"""Every request and response body, as pydantic models: what clients may send and what they get, and the OpenAPI document.

Fields have OpenAI's names and meanings, and vLLM's where it goes beyond; unknown fields are let through, as clients send
many that mean nothing here.
"""
