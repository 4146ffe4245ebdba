"""What can be asked of the console, each once: the browser, the REST API and the command all come here (`table`)."""
