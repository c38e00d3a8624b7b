"""How Alembic reaches the database: over the connection that `store.database` hands it."""

from alembic import context

from cxr_node.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
