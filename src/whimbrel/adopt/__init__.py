"""Taking a database that another program filled into the catalog, without embedding anything."""
