"""Between engine and agents: messages, keys, sockets."""
