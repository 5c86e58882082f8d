"""What people look at: statistics, reports, pictures of rows."""
