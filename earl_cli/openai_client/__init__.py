"""Clients of servers that speak the OpenAI protocol: connections, timeouts, retries."""
