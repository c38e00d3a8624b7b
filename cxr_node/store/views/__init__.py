"""What people and monitoring read: status, figures, searches."""
