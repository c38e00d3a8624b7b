"""From sockets to complete messages: processes, connections, PDUs, data sets on their way to disk."""
