"""Access and hardening: openness of the node, ownership of the data folder, links, process limits, texts of peers."""
