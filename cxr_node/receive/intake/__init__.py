"""From a complete data set to its rows and its response: admission of senders and instances."""
