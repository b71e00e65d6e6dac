"""Which experts steer a request, decided by a router from what the base makes of its prompt."""
