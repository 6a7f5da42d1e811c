"""Kafka and PostgreSQL for one machine: no Docker, no Java, no PostgreSQL installed, not even root."""
