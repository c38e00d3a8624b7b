"""The role `web`: pages, REST, health and metrics over HTTP. It is stateless; everything that it shows is in the database."""
