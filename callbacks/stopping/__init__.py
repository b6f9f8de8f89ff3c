"""When a run ends, and how it ends well."""
