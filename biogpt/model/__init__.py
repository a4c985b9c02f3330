"""The network: configuration, key/value cache, decoder, and heads with their losses."""
